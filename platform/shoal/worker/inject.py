"""Faults on order: a chosen worker fails at a chosen point of a chosen step, once. For tests and drills.

`hang` is what a collective does that nothing wakes: the training thread waits for ever, the others go on.

Points, in the order of a step: `accumulate` (before the first micro-batch), `accumulated` (after the last), `across`
(its part of the cross-cell sum is under way), `vote` (its word in the vote is under way), `commit` (the vote is
through, nothing is applied yet), `committed` (applied, nobody knows); at the beginning of a generation: `meet` (it is
told of), `join` (all of a membership have met, their groups are not built yet), `heal` (a copy to or from a peer
begins), `joined` (it stands; what was kept of former worlds is still there); and between steps: `checkpoint` (one is
written).

On the way to another world, be it of the same shape or of another: `pause` (told to leave after the next step),
`paused` (that step is committed, nobody was told), `form` (told to form a cell, nothing is left yet), `left` (the
former world is), `fill` (a shard is about to be filled from those of another shape), `filled` (it is, nobody knows).
Cell and rank of `form`, `left`, `fill` and `filled` are those to come. A fault that names no step is at whichever step
the point is met first; at `pause`, `form`, `left` and `fill` no other can be, since no state is looked at there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence

import torch

from shoal.config import Injection
from shoal_core.store import open_store

__all__ = ["Injector"]


class Injector:
    """The faults of a job, for one worker. A fault happens once in a run: its address `place` remembers."""

    def __init__(self, faults: Sequence[Injection], place: str) -> None:
        self._faults, self._place = list(enumerate(faults)), place

    def hit(self, point: str, step: int, cell: int, rank: int, tensor: torch.Tensor | None = None) -> None:
        """Called at every point; `step`: the pending one, -1 where no state stands; `tensor` is what a fault of this
        point may spoil.

        Raises:
            ValueError: as an error of the training code would.
        """
        for number, fault in self._faults:
            here = (fault.at, fault.cell, fault.rank) == (point, cell, rank) and fault.step in (None, step)
            if here and self._first(number):
                match fault.how:
                    case "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    case "freeze":
                        os.kill(os.getpid(), signal.SIGSTOP)
                    case "hang":
                        threading.Event().wait()
                    case "raise":
                        raise ValueError(f"injected at {point} of step {step}")
                    case "nan" if tensor is not None:
                        tensor.fill_(float("nan"))
                    case "flip" if tensor is not None:
                        tensor.view(-1).view(torch.int32)[0] ^= 1 << 20

    def _first(self, number: int) -> bool:
        return open_store(self._place).create(f".injected-{number}", b"")
