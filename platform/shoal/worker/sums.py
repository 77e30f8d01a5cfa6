"""The gradient sums of the step that a worker is in: what of its share is done, and what that came to.

Inside the cell only. What is done stays done when the generation changes: it is the shard's, and other cells add their
sums to what was made of it, since a sum that is stopped leaves garbage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from shoal import batching
from shoal.checkpoint import OURS
from shoal.worker.ballot import Count, Vote
from shoal.worker.exact import Fixed
from shoal_core.workload import ReplicaShard, Workload

__all__ = ["Sums", "largest"]


def largest(workload: Workload, steps: int) -> int:
    """Workers' micro-batches of the largest step of a run of `steps`, if batches only ever grow."""
    first, last = workload.samples(steps - 1)
    return batching.count(first, last, 1, workload.micro_batch)


class Sums:
    """The sums of rank `rank` of a cell of `size` workers, in float32, or in fixed point if `fixed` is given.

    `done`: micro-batches of the pending step; `taken`: this worker's samples of them; `figures`: what the workload says
    of each micro-batch (fixed point only).
    """

    def __init__(self, workload: Workload, shard: ReplicaShard, rank: int, size: int, fixed: Fixed | None) -> None:
        self.workload, self.shard, self.rank, self.size, self.fixed = workload, shard, rank, size, fixed
        if fixed is not None:
            fixed.gradients = shard.round_to(fixed)
        self.done: list[int] = []
        self.taken: list[int] = []
        self.figures: dict[int, list[float]] = {}
        self.begun = -1
        """The step that is being summed up (-1: none)."""

    def state(self) -> dict[str, torch.Tensor]:
        """What is part of the state beside the shard's, by name; the same on all workers."""
        return {} if self.fixed is None else {f"{OURS}exponent": self.fixed.state}

    def forget(self) -> None:
        """Nothing is done: the next step begins afresh."""
        self.begun, self.done, self.taken = -1, [], []

    def add_up(self, step: int, todo: Sequence[int]) -> torch.Tensor:
        """Accumulate what of the micro-batches `todo` is left to do; returns the cell's sums, to be added to.

        Raises:
            RuntimeError: as the workload does.
        """
        if self.begun != step:
            self.shard.begin(step)
            self.begun, self.done, self.taken, self.figures = step, [], [], {}
            if self.fixed is not None:
                self.fixed.begin()
        left = [m for m in todo if m not in self.done]
        for micro_batches in [left] if self.fixed is None else [[m] for m in left]:
            self.accumulate(micro_batches)
        if self.fixed is None:
            return self.shard.sums_to_keep()
        total = self.fixed.total()
        return torch.zeros_like(self.shard.sums(), dtype=torch.int64) if total is None else total

    def accumulate(self, micro_batches: list[int]) -> None:
        """Take micro-batches of the step: all at once, or one by one in fixed point, each of which is rounded before it
        is added to another."""
        if not micro_batches:
            return
        if self.fixed is not None:
            self.shard.begin(self.begun)  # each micro-batch's sums for themselves
        first, _ = self.workload.samples(self.begun)
        size, each = self.size, self.workload.micro_batch
        self.shard.accumulate([batching.cell_ids(first, m, size, each) for m in micro_batches])
        if self.fixed is not None:
            (micro_batch,) = micro_batches
            self.fixed.add(self.shard.sums())
            self.figures[micro_batch] = self.shard.stats()
        self.done += micro_batches
        self.taken += [i for m in micro_batches for i in batching.ids(first, m, self.rank, size, each)]

    def vote(self, worker: int, total: torch.Tensor) -> Vote:
        """What worker number `worker` says of its share of the step, beside what it says of itself."""
        first, _ = self.workload.samples(self.begun)
        fixed = self.fixed
        return Vote(
            worker=worker,
            rank=self.rank,
            taken=[index - first for index in self.taken],
            figures=self.figures if fixed is not None else {0: self.shard.stats()},
            norm=self.norm(total),
            pause=False,
            again=fixed is not None and fixed.overflow,
            nan=fixed is not None and fixed.nan,
            exponent=0 if fixed is None else int(fixed.state[0]),
        )

    def norm(self, total: torch.Tensor) -> list[float]:
        """What this worker says of the norm: see `Vote`."""
        if self.fixed is not None and self.fixed.gradients is not None:
            return self.fixed.weigh(total, None)
        mine = self.shard.norm_sq(self.value(total))
        return [mine] if self.fixed is None else self.fixed.weigh(total, mine)

    def judged(self, count: Count) -> tuple[float, float]:
        """The squared norm and the largest entry that all votes say the step has; the latter in fixed point only. No
        numbers if somebody's sums are none."""
        if count.nan:
            return math.nan, math.nan
        if self.fixed is None:
            return sum(norm for (norm,) in count.norms), 0.0
        first, last = self.workload.samples(self.begun)
        return self.fixed.weighed(count.norms, last - first)

    def value(self, total: torch.Tensor) -> torch.Tensor:
        """The float32 sums that a total stands for."""
        if self.fixed is None:
            return total
        value = self.fixed.value(total)
        return value.fill_(float("nan")) if self.fixed.nan else value

    def agreed(self, count: Count, peak: float) -> bool:
        """Whether a step may commit: always, or in fixed point if all agree on the exponent and nothing outgrew it.
        `peak`: the largest entry."""
        return self.fixed is None or self.fixed.agree(count.exponents, peak, count.again)
