"""Sums in fixed point, so that neither their order nor who computed which part matters (`reduce: exact`).

A float32 sum depends on its order; an integer sum does not. Each micro-batch's gradient is rounded once to a multiple
of 2**-exponent and added up in int64: within a cell, then across cells, in any order, with any number of cells, the
total is the same to the last bit. The exponent follows the last committed step's largest entry, which every worker that
holds the same shard knows alike, and is part of the state that is healed and saved.

Error: half a unit an entry and micro-batch, 2**-(61 - HEADROOM - log2 micro-batches) of the largest entry of the step
before: far below float32's own rounding. Cost: twice the bytes across cells, and the folding of each micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["HEADROOM", "Fixed"]

HEADROOM = 10
"""Bits by which a step's entries may outgrow those of the step before; more, and the step is done again (`agree`)."""
BITS = 62
UNKNOWN = 1 << 20
"""An exponent that is not known yet: the first step is done twice, once to learn it."""


class Fixed:
    """The fixed-point sums of one worker's shard. `parts`: micro-batches of a step, all cells together."""

    def __init__(self, parts: int) -> None:
        self._room = math.ceil(math.log2(max(parts, 2)))
        self.state = torch.tensor([UNKNOWN], dtype=torch.int64)
        """The exponent: part of what a twin needs to become this replica."""
        self._sum: torch.Tensor | None = None
        self.overflow = False
        self.nan = False

    @property
    def exponent(self) -> int:
        found = int(self.state[0])
        return self._fit(1.0) if found == UNKNOWN else found

    def begin(self) -> None:
        """Start a step."""
        self._sum, self.overflow, self.nan = None, False, False

    def add(self, part: torch.Tensor) -> None:
        """Fold in one micro-batch's sums (float32, flat)."""
        peak = float(part.abs().max()) if part.numel() else 0.0
        if not math.isfinite(peak):
            self.nan = True
            part = torch.zeros_like(part)
        elif peak > math.ldexp(1.0, BITS - self._room - self.exponent):
            self.overflow = True
            part = torch.zeros_like(part)
        folded = torch.ldexp(part.double(), torch.tensor(self.exponent)).round_().to(torch.int64)
        self._sum = folded if self._sum is None else self._sum.add_(folded)

    def total(self) -> torch.Tensor | None:
        """A fresh copy of the sums so far (int64), none if no micro-batch was folded in."""
        return None if self._sum is None else self._sum.clone()

    def value(self, total: torch.Tensor) -> torch.Tensor:
        """The float32 values that an int64 total stands for."""
        return torch.ldexp(total.double(), torch.tensor(-self.exponent)).float()

    def agree(self, exponents: Sequence[int], value: torch.Tensor, again: bool) -> bool:
        """After a vote: whether the step may commit. If not, the exponent is one that all holders of the shard share.

        `exponents`: of all holders, as they voted; `value`: the total; `again`: something outgrew the headroom. Who was
        stopped between a vote and what followed may hold another exponent than the others: the smallest counts.
        """
        known = [exponent for exponent in exponents if exponent != UNKNOWN]
        if not known and not again:
            self.follow(value)
        elif not known:
            self.state[0] = self.exponent - HEADROOM - 2
        elif again and len(set(exponents)) == 1:
            self.state[0] = known[0] - HEADROOM - 2
        else:
            self.state[0] = min(known)
        return not again and len(known) == len(exponents) and len(set(known)) == 1

    def follow(self, value: torch.Tensor) -> None:
        """Take the exponent from a complete total."""
        peak = float(value.abs().max()) if value.numel() else 0.0
        if math.isfinite(peak) and peak > 0:
            self.state[0] = self._fit(peak)

    def _fit(self, peak: float) -> int:
        return BITS - HEADROOM - self._room - math.frexp(peak)[1]
