"""A GPU's rules without a GPU: tensors that say they are on CUDA and hold nothing, and what would wait for the device.

A CPU build of torch knows no CUDA device; with a device guard that does nothing it takes fake tensors there, and
operands on different devices raise as on a GPU. Two things it cannot do: backward (autograd asks the accelerator for a
stream; see `backward_on_cuda`) and values; what reads one gets a made-up number, and is counted. Streams only write
down what is asked of them, and what is done beside training is done at once: fake tensors bear one thread at a time.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from shoal_core import lane
from tests.support.cuda_library import GUARD, CannotCompile, compile_library

__all__ = ["Watch", "fake_cuda"]


@cache
def _guard() -> str:
    """Have CUDA's device guard do nothing in this process; returns why that cannot be done, nothing if it was."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            ctypes.CDLL(str(compile_library(GUARD, Path(folder))))
    except CannotCompile as error:
        return str(error)
    return ""


class Stream:
    """A stream that does nothing. `log`: what is asked of all of them."""

    def __init__(self, log: list[str], name: str = "side") -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class Event:
    """An event that has always come."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def record(self, stream: Stream | None = None) -> None:
        self._on = "main" if stream is None else stream.name

    def synchronize(self) -> None:
        self._watch.streams.append(f"the host waits for {self._on}")
        if self._on == "main":
            self._watch.waits["event"] += 1


class AtOnce:
    """A thread that has run when it was started."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self.start = target


class Watch(TorchDispatchMode):
    """Counts operators, and what makes the host wait for the device (`waits`): a value that is read, an event on the
    main stream, and a copy either way that is not said to be `non_blocking`, since torch waits for all that is queued
    before it. Operators whose result has a size that only the device knows are refused by fake tensors themselves.
    `streams`: what was asked of streams, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.streams: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name()
        if name.startswith("aten::") and not func.is_view:
            self.operators[name] += 1
        if func is torch.ops.aten._local_scalar_dense.default:
            self._count(name, args[0].device)
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") and not kwargs.get("non_blocking"):
            self._copied(name, args[0].device, torch.device(kwargs["device"]))
        if func is torch.ops.aten.copy_.default and not (len(args) > 2 and args[2]):
            self._copied(name, args[1].device, args[0].device)
        return func(*args, **kwargs)

    def _copied(self, name: str, source: torch.device, target: torch.device) -> None:
        if source.type != target.type:
            self.waits[name] += 1

    def _count(self, name: str, device: torch.device) -> None:
        if device.type == "cuda":
            self.waits[name] += 1

    def reading(self, values: Callable[[torch.Tensor], list[Any]]) -> Any:
        """A patch of `tolist`: it waits once, and `values` says what is read."""

        def tolist(tensor: torch.Tensor) -> list[Any]:
            self._count("tolist", tensor.device)
            return values(tensor)

        return mock.patch.object(FakeTensor, "tolist", tolist)


def _to_empty(module: nn.Module, *, device: str, recurse: bool = True) -> nn.Module:
    """torch's own swaps tensors, which fake ones refuse."""
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    kind[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty  # type: ignore[assignment]
    return module


@contextmanager
def fake_cuda(*, preloaded: bool = False) -> Iterator[Watch]:
    """Skips the test, saying why, where that cannot be had. `preloaded`: this process has `cuda_library.DEVICE`."""
    problem = "" if preloaded else _guard()
    if problem:
        pytest.skip(f"no CUDA without a GPU here: {problem}")
    watch = Watch()
    streams: dict[str, Any] = {
        "Stream": partial(Stream, watch.streams),
        "Event": partial(Event, watch),
        "current_stream": partial(Stream, watch.streams, "main"),
        "stream": nullcontext,
    }
    with (
        mock.patch.object(nn.Module, "to_empty", _to_empty),
        mock.patch.multiple(torch.cuda, **streams),
        mock.patch.object(lane, "threading", SimpleNamespace(Thread=AtOnce)),
        FakeTensorMode(),
        watch,
    ):
        yield watch
