"""Sums in fixed point, so that neither their order nor who computed which part matters (`reduce: exact`).

A float32 sum depends on its order; an integer sum does not. Each micro-batch's gradient is rounded once to a multiple
of 2**-exponent and added up in int64: within a cell, then across cells, in any order, with any number of cells, the
total is the same to the last bit. A workload that rounds each worker's part itself, before the cell adds it to others
(`ReplicaShard.round_to`), comes to the same total in cells of any shape too; of others the sums of a whole cell's
micro-batch are rounded here. The exponent is one for the run: it follows the largest entry of the last committed step,
which all votes tell, and is part of the state that is healed, saved and brought to another shape.

Error: half a unit an entry and part, 2**-(61 - HEADROOM - log2 parts) of the largest entry of the step before: far
below float32's own rounding. Cost: twice the bytes, in the cell too, and the rounding of each part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from shoal_core.grid import HEADROOM, UNKNOWN, Grid, squares

__all__ = ["NORM", "Fixed"]

LIMBS, LIMB = 4, 48
"""A sum of squares travels in a vote as so many numbers of so many bits, each of which a float64 has exactly."""
NORM = LIMBS + 1
"""What a worker says of its part of the norm: see `Fixed.weigh`."""


class Fixed(Grid):
    """The fixed-point sums of one worker's shard. `parts`: workers' micro-batches of a step, all cells together.

    `gradients`: so many of the entries, the first ones, are gradients, and the rest are integers as they are; none: all
    are rounded here, and whose norm is asked for the shard knows alone."""

    def __init__(self, parts: int) -> None:
        super().__init__(parts)
        self.gradients: int | None = None
        self._sum: torch.Tensor | None = None

    def begin(self) -> None:
        """Start a step."""
        super().begin()
        self._sum = None

    def add(self, part: torch.Tensor) -> None:
        """Fold in one micro-batch's sums (flat; float32, or rounded already)."""
        rounded = self.round(part) if self.gradients is None else part
        self._sum = rounded.clone() if self._sum is None else self._sum.add_(rounded)

    def total(self) -> torch.Tensor | None:
        """A fresh copy of the sums so far (int64), none if no micro-batch was folded in."""
        return None if self._sum is None else self._sum.clone()

    def value(self, total: torch.Tensor) -> torch.Tensor:
        """The float32 values that an int64 total stands for."""
        found = super().value(total)
        if self.gradients is not None:
            found[self.gradients :] = total[self.gradients :].float()
        return found

    def weigh(self, total: torch.Tensor, norm_sq: float | None) -> list[float]:
        """What a worker says of its total: its part of the squared norm, exactly, and its largest entry. norm_sq: that
        part, where the shard has to know it."""
        gradients = total[: self.gradients]
        peak = math.ldexp(float(gradients.abs().max()), -self.exponent) if gradients.numel() else 0.0
        if norm_sq is not None:
            return [norm_sq, *[0.0] * (LIMBS - 1), peak]
        found = squares(gradients)
        return [*(float(found >> LIMB * place & (1 << LIMB) - 1) for place in range(LIMBS)), peak]

    def weighed(self, words: Sequence[Sequence[float]], samples: int) -> tuple[float, float]:
        """What all ranks of a cell said comes to: the squared norm of the gradient averaged over the step's `samples`,
        and the largest entry of the sums."""
        peak = max(word[-1] for word in words)
        if self.gradients is None:
            return sum(word[0] for word in words), peak
        found = sum(int(word[place]) << LIMB * place for word in words for place in range(LIMBS))
        return math.ldexp(found / samples**2, -2 * self.exponent), peak

    def agree(self, exponents: Sequence[int], peak: float, again: bool) -> bool:
        """After a vote: whether the step may commit. If not, the exponent is one that all workers share.

        `exponents`: of all workers, as they voted; `peak`: the largest entry of the total; `again`: something outgrew
        the headroom. Who was stopped between a vote and what followed may hold another exponent than the others: the
        smallest counts.
        """
        known = [exponent for exponent in exponents if exponent != UNKNOWN]
        if not known and not again:
            self.state[0] = self.exponent  # if there is nothing to follow
            self.follow(peak)
        elif not known:
            self.state[0] = self.exponent - HEADROOM - 2
        elif again and len(set(exponents)) == 1:
            self.state[0] = known[0] - HEADROOM - 2
        else:
            self.state[0] = min(known)
        return not again and len(known) == len(exponents) and len(set(known)) == 1

    def follow(self, peak: float) -> None:
        """Take the exponent from the largest entry of a complete total."""
        if math.isfinite(peak) and peak > 0:
            self.state[0] = self.fit(peak)
