"""Where the stages of a rank are computed on a device whose kernels are queued: each on a stream of its own.

The two actions of a pair are issued by two threads, and each waits for collectives in between: experts' rows, which
another rank sends when its own kernels come to that point. On a device a wait holds up its stream, not its thread, and
all threads share one stream unless told otherwise. Then which wait stands before which send is chance, differs from
rank to rank, and two ranks soon wait for each other for ever. So the two actions of a pair need two streams.

Why a stream a stage, not one a thread: autograd runs the backward of an operation on the stream of its forward, in
whatever thread it is called. With a stream a thread the backward would be where its forward was, and that is where the
forward of the pair is now. The actions of a pair are always of two stages, so a stream a stage keeps them apart.

Why not both actions cut into pieces and issued in turn by one thread, as DeepSeek does: that orders the waits as well,
but ties the model's code to the schedule, piece by piece. Two threads leave it as it is, and are what a CPU needs.

Steps keep their order: what a step computes waits for the main stream, and the main stream for it. So gradients that
two stages share (the embedding's) are never added to at once, and memory that one step frees is not written to while
another still reads it, as long as tensors that change streams say so (`record_stream`).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["DeviceStreams", "Streams", "streams_of"]


class Streams:
    """Of a device that computes what it is told at once, or one action after the other: there is nothing to do."""

    def fork(self, stage: int, value: torch.Tensor | None) -> None:
        """What is computed `on` the stage from now on comes after all that was queued so far; `value` is read there."""

    def on(self, stage: int) -> AbstractContextManager[Any]:
        """Where this thread's kernels of the stage are queued."""
        return nullcontext()

    def join(self, stage: int) -> None:
        """What is queued from now on comes after all that was queued `on` the stage."""

    def settle(self) -> None:
        """Wait until all that was queued is done, for a clock to be read."""


class DeviceStreams(Streams):
    """Of `stages` that are computed two at once; others stay on the main stream. `fork`, `join` and `settle` are called
    by the thread whose stream is the main one, `on` by any. Made once: torch has 32 streams to give away, and memory
    that is freed stays with its stream. `device`: what makes them, as `torch.cuda` does."""

    def __init__(self, stages: Iterable[int], device: Any = torch.cuda) -> None:
        self._device = device
        self._streams = {stage: device.Stream() for stage in stages}

    def fork(self, stage: int, value: torch.Tensor | None) -> None:
        """See `Streams`."""
        if stream := self._streams.get(stage):
            stream.wait_stream(self._device.current_stream())
            if value is not None:
                value.record_stream(stream)

    def on(self, stage: int) -> AbstractContextManager[Any]:
        """See `Streams`."""
        found: AbstractContextManager[Any] = self._device.stream(self._streams.get(stage))
        return found

    def join(self, stage: int) -> None:
        """See `Streams`."""
        if stream := self._streams.get(stage):
            self._device.current_stream().wait_stream(stream)

    def settle(self) -> None:
        """See `Streams`."""
        self._device.current_stream().synchronize()


def streams_of(device: str, stages: Iterable[int]) -> Streams:
    """Where a rank's stages are computed on `device`; `stages`: those that are computed two at once."""
    return DeviceStreams(stages) if torch.device(device).type == "cuda" else Streams()
