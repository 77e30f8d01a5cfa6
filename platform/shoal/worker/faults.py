"""What the errors of torch, CUDA, cuBLAS, cuDNN, Triton and NCCL mean: one table, read from the top.

They come as few types (`RuntimeError`, `AcceleratorError`, `DistBackendError`) whose text alone says what happened. An
error that no row knows is the training code's.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

__all__ = ["ENDS", "Fault", "meaning", "memory_figures"]


class Fault(StrEnum):
    """What an error is the fault of, and so what follows."""

    PEER = "peer"
    """Somebody else is gone or cannot be reached: the generation, or the cell, is formed again."""
    DEVICE = "device"
    """This process's device cannot be used any more: the process ends, is healed, and counts against its node."""
    MEMORY = "memory"
    """The device's memory is full: as for DEVICE, but twice at one step on different nodes it is the job's."""
    CODE = "code"
    """The training code itself: the run ends."""


ENDS = (Fault.DEVICE, Fault.MEMORY)
"""What a process does not go on after: a device answers everything with the same error, or keeps what it allocated."""


class Row(NamedTuple):
    """`kind`: name of a class that the error is of; `text`: what its message contains, an expression."""

    fault: Fault
    text: str = ""
    kind: str = ""


TABLE = [
    # the device has no room
    Row(Fault.MEMORY, kind="OutOfMemoryError"),
    Row(Fault.MEMORY, r"CUDA out of memory|CUDA error: out of memory|Cuda failure.*out of memory"),
    Row(Fault.MEMORY, r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|\[CUDA\]: out of memory"),
    # what was asked of it cannot be done, and it goes on
    Row(Fault.CODE, r"no kernel image is available|invalid device function|invalid configuration argument"),
    Row(Fault.CODE, r"ncclInvalidArgument|ncclInvalidUsage|NCCL Error [45]\b|CUDA error: invalid argument"),
    Row(Fault.CODE, r"CUBLAS_STATUS_(INVALID_VALUE|NOT_SUPPORTED)|CUDNN_STATUS_(BAD_PARAM|NOT_SUPPORTED)"),
    # NCCL met an error of the device
    Row(Fault.DEVICE, r"ncclUnhandledCudaError|unhandled cuda error|NCCL Error 1\b|Cuda failure"),
    # the device itself; after an error of these its context answers everything with the same error
    Row(Fault.DEVICE, kind="AcceleratorError"),
    Row(Fault.DEVICE, r"CUDA error|CUDA driver error|CUDA failure|Triton Error \[CUDA\]|ECC error|cudaError"),
    Row(Fault.DEVICE, r"CUBLAS_STATUS_|CUDNN_STATUS_|CUSOLVER_STATUS_|CUDA-capable device|No CUDA GPUs are available"),
    # communication: torch's own errors, gloo's, and NCCL's where it names none of the above
    Row(Fault.PEER, kind="DistError"),
    Row(Fault.PEER, r"gloo/|onnection"),
    Row(Fault.PEER, r"ncclRemoteError|ncclSystemError|ncclInternalError|NCCL Error [236]\b|NCCL error in"),
    Row(Fault.PEER, r"NCCL communicator was aborted|remote process exited or there was a network error"),
]

FIGURE = re.compile(
    r"(Tried to allocate|total capacity of|of which|Of the allocated memory|and) "
    r"([\d.]+ [KMGT]?i?B|[\d.]+ bytes)( is free| is allocated by PyTorch| is reserved by PyTorch)?"
)


def meaning(error: BaseException) -> Fault:
    """What an error is the fault of."""
    kinds, text = {kind.__name__ for kind in type(error).__mro__}, str(error)
    for row in TABLE:
        if (not row.kind or row.kind in kinds) and re.search(row.text, text):
            return row.fault
    return Fault.CODE


def memory_figures(text: str) -> str:
    """The numbers of torch's message that memory is out, in one clause; the whole message if it has none."""
    said = {
        "Tried to allocate": "{} wanted",
        "total capacity of": "of {}",
        "of which": "{} free",
        "Of the allocated memory": "{} held by tensors",
        "and": "{} reserved beside",
    }
    found = [said[head].format(size) for head, size, _ in FIGURE.findall(text)]
    return ", ".join(found) or text
