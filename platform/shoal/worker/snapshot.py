"""The last good state, in this worker's own memory: what a step that went wrong is rolled back to.

All workers take it at the same committed steps (every `snapshots.every`, and whenever a generation begins, since a
healed cell has none), so that all go back to the same state. The step counter is not turned back: the steps since then
count as done, their samples as skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch

from shoal_core.lane import Copy, Lane, room_for

__all__ = ["Kept", "Snapshot", "checksum"]


@dataclass(frozen=True)
class Kept:
    """A copy of a worker's tensors, which may still be on its way."""

    begun: Future[tuple[list[torch.Tensor], Copy]]

    def read(self) -> list[torch.Tensor]:
        """Its tensors, once they are there. Any thread."""
        tensors, copy = self.begun.result()
        copy.wait()
        return tensors


class Snapshot:
    """One copy of a worker's tensors; its memory is used again for the next. They leave a GPU over `lane`, while the
    next step runs: whoever changes them lets the lane precede."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.steps = -1
        self._kept: Kept | None = None
        self._lent = False

    def take(self, tensors: Callable[[], Sequence[torch.Tensor]], steps: int) -> None:
        """Begin to copy the state after `steps` committed steps; a copy that is lent stays with who reads it. Whoever
        makes `tensors` may wait for averages, which are made beside training; what is on the device is copied as it is
        now."""
        used = None if self._lent else self._kept
        self.lane.follow()
        self._kept, self._lent = Kept(self.lane.begin(partial(self._copy, tensors, used))), False
        self.steps = steps

    def _copy(
        self, tensors: Callable[[], Sequence[torch.Tensor]], used: Kept | None
    ) -> tuple[list[torch.Tensor], Copy]:
        state = tensors()
        rooms = [room_for(tensor) for tensor in state] if used is None else used.begun.result()[0]
        return rooms, self.lane.copy(rooms, state)

    def arrived(self) -> None:
        """Wait until the copy is there."""
        if self._kept is not None:
            self._kept.read()

    def lend(self) -> Kept:
        """The copy, for another thread to read."""
        assert self._kept is not None
        self._lent = True
        return self._kept

    def give_back(self, kept: Kept) -> None:
        """Nobody reads `kept` any more."""
        if kept is self._kept:
            self._lent = False

    def restore(self, tensors: Sequence[torch.Tensor]) -> int:
        """Write the copy back; returns its steps.

        Raises:
            RuntimeError: there is none.
        """
        if self._kept is None:
            raise RuntimeError("the workload asks to roll back, but there is no snapshot: set snapshots.every")
        self.lane.precede()
        for mine, tensor in zip(self._kept.read(), tensors, strict=True):
            tensor.detach().copy_(mine)
        return self.steps


def checksum(tensors: Sequence[torch.Tensor]) -> float:
    """A sum over all bits of a state that any single flipped bit changes; an integer below 2**52, exact in float64."""
    totals: dict[torch.device, torch.Tensor] = {}  # each read once: to read one waits for its device
    for tensor in tensors:
        octets = tensor.detach().contiguous().view(-1).view(torch.uint8)
        words = octets[: octets.numel() // 4 * 4].view(torch.int32)
        total = totals.setdefault(octets.device, octets.new_zeros((), dtype=torch.int64))
        total += words.sum(dtype=torch.int64) + octets[words.numel() * 4 :].sum(dtype=torch.int64)
    return float(sum(int(total) for total in totals.values()) % (1 << 52))
