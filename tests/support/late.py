"""A device whose other streams are as late as they may be: what is queued on one is done when somebody waits for it.

It has of `torch.cuda` what `shoal_core.lane.DeviceLane` asks for. The main stream computes at once, on tensors of the
CPU, so whoever changes what is still to be copied without a wait finds the change in the copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Late"]


class Stream:
    """`log`: what is asked of all streams, in order."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self._queued: list[Callable[[], object]] = []
        self._done, self._lock = 0, threading.Lock()

    def queue(self, work: Callable[[], object]) -> int:
        """Returns how much was ever queued here."""
        with self._lock:
            self._queued.append(work)
            return self._done + len(self._queued)

    def run(self, much: int | None = None) -> None:
        """Do what was queued first, `much` of it in all; none: everything."""
        with self._lock:
            while self._queued and (much is None or self._done < much):
                self._queued.pop(0)()
                self._done += 1

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")
        other.run()


class Event:
    def record(self, stream: Stream) -> None:
        self._stream, self._much = stream, stream.queue(int)
        stream.log.append(f"event on {stream.name}")

    def synchronize(self) -> None:
        self._stream.log.append("the host waits")
        self._stream.run(self._much)


class Queued(TorchDispatchMode):
    """Copies are queued on a stream; nothing else may be."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is torch.ops.aten.copy_.default, func
        target, source, non_blocking = args
        assert non_blocking, "a copy that is waited for"
        self._stream.log.append(f"copy on {self._stream.name}")
        self._stream.queue(lambda: target.copy_(source))
        return target


class Late:
    """The device."""

    Event = Event

    def __init__(self) -> None:
        self.log: list[str] = []
        self._main = Stream("main", self.log)

    def Stream(self) -> Stream:
        return Stream("side", self.log)

    def current_stream(self) -> Stream:
        return self._main

    def stream(self, chosen: Stream) -> Queued:
        return Queued(chosen)
