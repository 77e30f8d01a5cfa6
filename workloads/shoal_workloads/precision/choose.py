"""The number format of a run: what its activations are, and which back end multiplies."""

from __future__ import annotations

import importlib.util

import torch

from shoal_core.errors import UserError
from shoal_workloads.precision.blockwise import available
from shoal_workloads.precision.fp8 import EmulatedFp8
from shoal_workloads.precision.products import Products

__all__ = ["choose"]


def choose(precision: str, device: str) -> tuple[torch.dtype, Products]:
    """Type of the activations and the products. precision: fp32, bf16 or fp8; device: cpu or cuda.

    Raises:
        UserError: FP8 on a GPU that has it, without Triton, whose kernels it needs.
    """
    if precision != "fp8":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], Products()
    if device == "cuda" and torch.cuda.get_device_capability() >= (9, 0):
        if importlib.util.find_spec("triton") is None:
            raise UserError("precision: fp8 on this GPU needs Triton", "install triton, or set precision: bf16")
        from shoal_workloads.precision.hopper import HopperFp8

        return torch.bfloat16, HopperFp8(scaled_mm=available(torch.cuda.get_device_capability(), torch.version.cuda))
    return torch.bfloat16, EmulatedFp8()
