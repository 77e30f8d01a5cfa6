"""Faults on order: a chosen worker fails at a chosen point of a chosen step, once. For tests and drills.

`hang` is what a collective does that nothing wakes: the training thread waits for ever, the others go on.

Points, in the order of a step: `accumulate` (before the first micro-batch), `accumulated` (after the last), `across`
(its part of the cross-cell sum is under way), `vote` (its word in the vote is under way), `commit` (the vote is
through, nothing is applied yet), `committed` (applied, nobody knows); and between steps: `join` (all of a membership
have met, their groups are not built yet), `heal` (a copy to or from a peer begins), `checkpoint` (one is written).
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
        """Called at every point; `tensor` is what a fault of this point may spoil.

        Raises:
            ValueError: as an error of the training code would.
        """
        for number, fault in self._faults:
            if (fault.at, fault.step, fault.cell, fault.rank) == (point, step, cell, rank) and self._first(number):
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
