"""What every worker says in the vote of a step, as one float64 tensor that is summed over all of them.

Who took which sample, the workload's figures, the parts of the gradient's norm, and some flags. In exact mode each
figure has a place for every micro-batch and rank, so that it is added to zeros alone: the sum is taken afterwards, in
the order of the samples. So have the parts of the norm, which `Fixed` makes and adds up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from shoal.worker.exact import NORM

__all__ = ["Ballot", "Count", "Vote"]

TAKEN = 1 << 32
"""What taking a sample adds to its entry, beside the taker's index: exact in float64, so the sum tells how many took it
and, if one, who."""


@dataclass(frozen=True)
class Vote:
    """One worker's word. `taken`: places of its samples in the step; `figures`: by micro-batch; `norm`: its part
    of the squared norm, in exact mode as `Fixed.weigh` says it; `save`, `saving`: it wants a checkpoint, one is under
    way there."""

    worker: int
    rank: int
    taken: Sequence[int]
    figures: Mapping[int, Sequence[float]]
    norm: Sequence[float]
    pause: bool
    again: bool
    nan: bool = False
    exponent: int = 0
    checksum: float = 0.0
    seconds: float = 0.0
    copied: float = 0.0
    save: bool = False
    saving: bool = False


@dataclass(frozen=True)
class Count:
    """What all votes together say. `takers`: worker of each sample; `norms`: what each rank says of the norm, or all
    together, if sums are not exact; `pause`: all leave after this step; `again`: somebody asks to do the step again;
    `nan`: somebody's sums are no numbers; `exponents`: of every worker, exact mode only; `checksums`: of every worker,
    if compared; `seconds` a micro-batch, of every worker; `copied`: what a copy of the state took of a step, of every
    worker, if that is told; `save`, `saving`: somebody wants a checkpoint, one is under way with somebody."""

    takers: list[int]
    stats: list[float]
    norms: list[list[float]]
    pause: bool
    again: bool
    nan: bool
    exponents: list[int]
    checksums: list[float]
    seconds: list[float]
    copied: list[float]
    save: bool
    saving: bool


@dataclass(frozen=True)
class Ballot:
    """The layout: samples and micro-batches of the step, ranks of a cell, cells, figures of the workload; whether sums
    are exact, whether the replicas' states are compared and whether it is told what copies of them cost."""

    samples: int
    micro_batches: int
    ranks: int
    cells: int
    figures: int
    exact: bool
    compare: bool
    copies: bool = False

    def fill(self, vote: Vote, *, first_cell: bool) -> torch.Tensor:
        """The tensor of one worker (float64)."""
        claims = torch.zeros(self.samples, dtype=torch.float64)
        claims[torch.tensor(vote.taken, dtype=torch.int64)] = float(TAKEN + vote.worker)
        norms = torch.zeros(self.ranks, NORM, dtype=torch.float64) if self.exact else torch.zeros(1, 1).double()
        if self.exact:
            figures = torch.zeros(self.micro_batches, self.ranks, self.figures, dtype=torch.float64)
            for micro_batch, values in vote.figures.items():
                figures[micro_batch, vote.rank] = torch.tensor(values, dtype=torch.float64)
            if first_cell:
                norms[vote.rank] = torch.tensor(vote.norm, dtype=torch.float64)
        else:
            figures = torch.zeros(self.figures, dtype=torch.float64)
            for values in vote.figures.values():
                figures += torch.tensor(values, dtype=torch.float64)
            norms[0] = torch.tensor(vote.norm, dtype=torch.float64) / self.cells
        asked = [vote.pause, vote.again, vote.nan, vote.save, vote.saving]
        flags = torch.tensor(asked, dtype=torch.float64)
        exponents = torch.zeros(self.cells * self.ranks if self.exact else 0, dtype=torch.float64)
        if self.exact:
            exponents[vote.worker] = float(vote.exponent)
        checksums = torch.zeros(self.cells * self.ranks if self.compare else 0, dtype=torch.float64)
        if self.compare:
            checksums[vote.worker] = vote.checksum
        seconds = torch.zeros(self.cells * self.ranks, dtype=torch.float64)
        seconds[vote.worker] = vote.seconds
        copied = torch.zeros(self.cells * self.ranks if self.copies else 0, dtype=torch.float64)
        if self.copies:
            copied[vote.worker] = vote.copied
        return torch.cat([claims, figures.flatten(), norms.flatten(), flags, exponents, checksums, seconds, copied])

    def read(self, total: torch.Tensor, step: int, first: int) -> Count:
        """What the sum over all workers says.

        Raises:
            AssertionError: a sample was taken by nobody or more than once; the step must not commit.
        """
        size = self.ranks * NORM if self.exact else 1
        many = self.micro_batches * self.ranks * self.figures if self.exact else self.figures
        workers = self.cells * self.ranks
        of_each = [workers * self.exact, workers * self.compare, workers, workers * self.copies]
        parts = [self.samples, many, size, 5, *of_each]
        claims, figures, norm, flags, exponents, checksums, seconds, copied = total.split(parts)
        takers = []
        for place, claim in enumerate(claims.tolist()):
            times, who = divmod(int(claim), TAKEN)
            if times != 1:
                raise AssertionError(f"step {step}: sample {first + place} was taken {times} times")
            takers.append(who)
        stats = [0.0] * self.figures
        for row in figures.view(-1, self.figures).tolist():
            stats = [total + value for total, value in zip(stats, row, strict=True)]
        norms: list[list[float]] = norm.view(-1, NORM if self.exact else 1).tolist()
        wanted = [int(exponent) for exponent in exponents.tolist()]
        pause, again, nan, save, saving = (bool(flag) for flag in flags.tolist())
        told = (checksums.tolist(), seconds.tolist(), copied.tolist())
        return Count(takers, stats, norms, pause, again, nan, wanted, *told, save, saving)
