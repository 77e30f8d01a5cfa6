"""A device whose other streams are as late as they may be: what is queued on one is done when somebody waits for it.

It has of `torch.cuda` what `shoal_core.lane.DeviceLane` asks for. The main stream computes at once, on tensors of the
CPU, so whoever changes what is still to be copied without a wait finds the change in the copy, and whoever reads what
was copied without a wait of the host's finds garbage.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["GARBAGE", "Late"]

GARBAGE = 77.0
"""What the host finds where a copy is on its way."""


class Stream:
    """`log`: what is asked of all streams, in order. What is queued is in two halves: what the device reads when it
    comes to it, which returns what the host finds once it has waited."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self._queued: list[Callable[[], Callable[[], object]]] = []
        self._unseen: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._done = self._seen = 0

    def queue(self, work: Callable[[], Callable[[], object]]) -> int:
        """Returns how much was ever queued here."""
        with self._lock:
            self._queued.append(work)
            return self._done + len(self._queued)

    def run(self, much: int | None = None) -> None:
        """Have the device do what was queued first, `much` of it in all; none: everything."""
        with self._lock:
            while self._queued and (much is None or self._done < much):
                self._unseen.append(self._queued.pop(0)())
                self._done += 1

    def see(self, much: int) -> None:
        """Have the host find what was queued first, `much` of it in all."""
        self.run(much)
        with self._lock:
            while self._unseen and self._seen < much:
                self._unseen.pop(0)()
                self._seen += 1

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")
        other.run()


class Event:
    def record(self, stream: Stream) -> None:
        self._stream, self._much = stream, stream.queue(lambda: int)
        stream.log.append(f"event on {stream.name}")

    def synchronize(self) -> None:
        self._stream.log.append("the host waits")
        self._stream.see(self._much)


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
        target.fill_(GARBAGE)

        def read() -> Callable[[], object]:
            found = source.clone()
            return lambda: target.copy_(found)

        self._stream.queue(read)
        return target


Made = Stream
"""In a class that has a method of that name."""


class Late:
    """The device."""

    Event = Event

    def __init__(self) -> None:
        self.log: list[str] = []
        self._main = Stream("main", self.log)

    def Stream(self) -> Made:
        return Stream("side", self.log)

    def current_stream(self) -> Made:
        return self._main

    def stream(self, chosen: Made) -> Queued:
        return Queued(chosen)
