"""One training step as a transaction: it commits everywhere or nowhere.

    inside the cell    forward and backward over this cell's micro-batches; gradient sums stay here
    across cells       a copy of the sums is added over the cells (matching workers only)
    vote               one all-reduce over every worker: who took which sample, losses, gradient norm
    commit             optimizer step, no communication

Whoever leaves the vote knows that every worker has its total, since the vote needs a word from each. So a worker that
leaves it commits, and a worker that was stopped in it can still commit later, when the controller says that somebody
has. The vote also proves that each sample of the step was taken exactly once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shoal import batching
from shoal.worker.groups import Groups
from shoal.workload import Replica, Workload

__all__ = ["CellBroken", "Member", "Step", "world_broke"]

TAKEN = 1 << 32
"""What taking a sample adds to its entry of the vote, beside the taker's index: exact in float64, so the sum tells how
many took it and, if one, who."""


class CellBroken(Exception):
    """A collective inside the cell failed: the cell's world is unusable."""


@dataclass(frozen=True)
class Member:
    """This worker's place: its cell, its rank in it and the cell's size."""

    cell: int
    rank: int
    size: int


def world_broke(error: RuntimeError) -> bool:
    """Whether an error comes from communication (a peer is gone), not from the training code."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error) or "onnection" in str(error)


class Step:
    """A worker's part in the steps of a cell, across generations.

    `steps`: committed steps of the state (-1: nothing healed yet). `todo`, `done`: micro-batches of the pending step;
    what is done stays done when the generation changes. `evaluated`, `saved`: the last boundary evaluated and saved at.
    """

    def __init__(self, member: Member, workload: Workload, replica: Replica, groups: Groups) -> None:
        self.member, self.workload, self.replica, self.groups = member, workload, replica, groups
        self.steps, self.evaluated, self.saved = -1, -1, -1
        self.todo: list[int] = []
        self.done: list[int] = []
        self.taken: list[int] = []
        self.begun = -1
        self.total: torch.Tensor | None = None
        self.cells: list[int] = []
        self.crew: list[str] = []
        self.cross: Any = None
        self.all: Any = None
        self.since = time.monotonic()

    def enter(self, generation: int, cells: list[int], crew: list[str], evaluated: int) -> None:
        """Build the groups of a generation: matching workers over cells, and everybody."""
        self.groups.leave(self.cross, self.all)
        self.cross = self.all = None
        self.cells, self.crew, self.evaluated = cells, crew, max(self.evaluated, evaluated)
        place, rank, size = cells.index(self.member.cell), self.member.rank, self.member.size
        self.cross = self.groups.build(f"cross/{generation}/{rank}", place, len(cells))
        self.all = self.groups.build(f"all/{generation}", place * size + rank, len(crew))
        self.groups.retire()

    def healed(self, steps: int) -> None:
        """The state was just copied from a peer."""
        self.replica.loaded(steps)
        self.steps, self.begun = steps, -1
        self.done, self.taken = [], []

    def first_cell(self) -> bool:
        return self.member.cell == self.cells[0]

    def index(self) -> int:
        """Of this worker among all."""
        return self.cells.index(self.member.cell) * self.member.size + self.member.rank

    def run(self) -> dict[str, Any]:
        """Run the pending step to its commit; the record of it.

        Raises:
            Stopped: the generation ended first. CellBroken: a peer inside the cell is gone.
            RuntimeError: a collective between cells failed.
        """
        start = time.monotonic()
        first, last = self.workload.samples(self.steps)
        total = self.inside(first)
        inside = time.monotonic()
        self.groups.sum(self.cross, total)
        self.total = total
        vote = self.ballot(first, last, total)
        self.groups.sum(self.all, vote)
        batch = last - first
        takers = self.count(first, vote[:batch].tolist())
        stats = vote[batch:-1].tolist()
        norm_sq = float(vote[-1]) / len(self.cells)
        phases = {"inside": inside - start, "across": time.monotonic() - inside}
        return self.commit(stats, norm_sq, takers) | {"phases": phases}

    def inside(self, first: int) -> torch.Tensor:
        """Accumulate what is left to do and return a fresh copy of the cell's sums."""
        try:
            if self.begun != self.steps:
                self.replica.begin(self.steps)
                self.begun, self.done, self.taken = self.steps, [], []
            for micro_batch in [m for m in self.todo if m not in self.done]:
                ids = batching.ids(first, micro_batch, self.member.rank, self.member.size, self.workload.micro_batch)
                self.replica.accumulate(ids)
                self.done.append(micro_batch)
                self.taken += ids
            return self.replica.sums().clone()
        except RuntimeError as error:
            if world_broke(error):
                raise CellBroken from error
            raise

    def ballot(self, first: int, last: int, total: torch.Tensor) -> torch.Tensor:
        """This worker's vote, float64: an entry a sample of the step, the workload's figures, its part of the norm."""
        claims = torch.zeros(last - first, dtype=torch.float64)
        claims[torch.tensor(self.taken, dtype=torch.int64) - first] = float(TAKEN + self.index())
        figures = torch.tensor([*self.replica.stats(), self.replica.norm_sq(total)], dtype=torch.float64)
        return torch.cat([claims, figures])

    def count(self, first: int, claims: list[float]) -> list[int]:
        """Who took each sample: index of the worker, in the order of the samples.

        Raises:
            AssertionError: a sample was taken by nobody or more than once; the step must not commit.
        """
        takers = []
        for place, claim in enumerate(claims):
            times, who = divmod(int(claim), TAKEN)
            if times != 1:
                raise AssertionError(f"step {self.steps}: sample {first + place} was taken {times} times")
            takers.append(who)
        return takers

    def commit(self, stats: list[float], norm_sq: float, takers: list[int]) -> dict[str, Any]:
        """Apply the optimizer step to the complete total."""
        assert self.total is not None, f"step {self.steps} cannot commit: its total is not complete"
        metrics = self.replica.commit(self.total, stats, norm_sq)
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        self.steps += 1
        self.total, self.done, self.taken = None, [], []
        first, last = self.workload.samples(self.steps)
        micro_batches = batching.count(first, last, self.member.size, self.workload.micro_batch)
        self.todo = batching.share(micro_batches, self.cells)[self.member.cell]
        return {
            "steps": self.steps,
            "metrics": metrics,
            "stats": stats,
            "norm_sq": norm_sq,
            "takers": takers,
            "crew": self.crew,
            "cell_of": [cell for cell in self.cells for _ in range(self.member.size)],
            "cells": len(self.cells),
            "seconds": seconds,
        }

    def evaluate(self) -> dict[str, float]:
        """Bits per byte and others on the held-out set, shared out over all workers.

        Raises: as `run`.
        """
        try:
            stats = torch.tensor(self.replica.evaluate(self.index(), len(self.crew)), dtype=torch.float64)
        except RuntimeError as error:
            if world_broke(error):
                raise CellBroken from error
            raise
        self.groups.sum(self.all, stats)
        return self.replica.eval_metrics(stats.tolist())
