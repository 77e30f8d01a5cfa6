"""A device whose kernels are queued, as a model: what threads queue on streams, and how far the streams then get.

It has of `torch.cuda` what `parallel.pipeline.streams.DeviceStreams` asks for. A stream is a list of what was queued on
it; a collective starts once every rank has come to its issue, and a wait holds up its stream until it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

__all__ = ["Collective", "Noted", "Queues", "Stream", "run"]


class Collective(NamedTuple):
    """The `number`-th of a communicator over all ranks."""

    communicator: str
    number: int


class Stream:
    """`queued`: ("issue" or "wait", a collective), or ("after", (another stream, how much of it)). `settled`: how much
    of it there was whenever the host waited for it."""

    def __init__(self) -> None:
        self.queued: list[tuple[str, Any]] = []
        self.settled: list[int] = []

    def synchronize(self) -> None:
        self.settled.append(len(self.queued))

    def wait_stream(self, other: Stream) -> None:
        self.queued.append(("after", (other, len(other.queued))))


class Noted(torch.Tensor):
    """A tensor that knows the streams on which its memory was said to be used."""

    streams: set[Stream]

    def record_stream(self, stream: Any) -> None:
        self.streams = {*getattr(self, "streams", ()), stream}


Made = Stream
"""In a class that has a method of that name."""


class Queues:
    """The device of one rank. Every thread begins with the main stream."""

    def __init__(self) -> None:
        self.main = Stream()
        self.streams = [self.main]
        self._current = threading.local()
        self._issued: dict[str, int] = {}

    def Stream(self) -> Made:
        self.streams.append(Stream())
        return self.streams[-1]

    def current_stream(self) -> Made:
        found: Made = getattr(self._current, "stream", self.main)
        return found

    @contextmanager
    def stream(self, chosen: Made | None) -> Iterator[None]:
        before = self.current_stream()
        self._current.stream = chosen or before
        try:
            yield
        finally:
            self._current.stream = before

    def exchange(self, communicator: str) -> None:
        """Issue the communicator's next collective and wait for it, as a thread does on its current stream."""
        number = self._issued[communicator] = self._issued.get(communicator, -1) + 1
        work = Collective(communicator, number)
        self.current_stream().queued += [("issue", work), ("wait", work)]


def run(devices: Sequence[Queues]) -> bool:
    """Whether all streams of all ranks come to their ends."""
    at: dict[Stream, int] = {stream: 0 for device in devices for stream in device.streams}
    started: dict[Collective, int] = {}
    moved = True
    while moved:
        moved = False
        for stream in at:
            while at[stream] < len(stream.queued):
                what, about = stream.queued[at[stream]]
                if what == "wait" and started.get(about, 0) < len(devices):
                    break
                if what == "after" and at[about[0]] < about[1]:
                    break
                if what == "issue":
                    started[about] = started.get(about, 0) + 1
                at[stream] += 1
                moved = True
    return all(place == len(stream.queued) for stream, place in at.items())
