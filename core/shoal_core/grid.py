"""Fixed point: what a step adds up is rounded to multiples of a power of two first, and added up as integers, so that
neither the order nor who added which part matters (`reduce: exact`).
"""

from __future__ import annotations

import math

import torch

__all__ = ["BITS", "HEADROOM", "UNKNOWN", "Grid", "squares"]

HEADROOM = 10
"""Bits by which a step's entries may outgrow those of the step before."""
BITS = 62
UNKNOWN = 1 << 20
"""An exponent that is not known yet."""
LIMB, CHUNK = 21, 1 << 20
"""Bits of a part of an integer, and how many products of two such parts fit into an int64 together."""


class Grid:
    """The multiples of 2**-`exponent`. `parts`: roundings of a step that are added up, of all cells together.

    `overflow`, `nan`: since the last `begin` something that was to be rounded was too large to be added up, or was no
    number. It counts as nothing then."""

    def __init__(self, parts: int) -> None:
        self._room = math.ceil(math.log2(max(parts, 2)))
        self.state = torch.tensor([UNKNOWN], dtype=torch.int64)
        """The exponent: part of what a twin needs to become this replica."""
        self.overflow = False
        self.nan = False

    @property
    def exponent(self) -> int:
        found = int(self.state[0])
        return self.fit(1.0) if found == UNKNOWN else found

    def begin(self) -> None:
        """Start a step."""
        self.overflow, self.nan = False, False

    def round(self, part: torch.Tensor) -> torch.Tensor:
        """A part of the sums (of any float type) in units of the grid: int64, of the same shape."""
        peak = largest(part)
        if not math.isfinite(peak):
            self.nan = True
        elif peak > math.ldexp(1.0, BITS - self._room - self.exponent):
            self.overflow = True
        else:
            return part.double().mul_(math.ldexp(1.0, self.exponent)).round_().to(torch.int64)
        return torch.zeros_like(part, dtype=torch.int64)

    def value(self, total: torch.Tensor) -> torch.Tensor:
        """The float32 values of int64 sums."""
        return total.double().mul_(math.ldexp(1.0, -self.exponent)).float()

    def fit(self, peak: float) -> int:
        """The exponent for sums whose largest entry is about `peak`."""
        return BITS - HEADROOM - self._room - math.frexp(peak)[1]


def largest(part: torch.Tensor) -> float:
    """The magnitude of the largest entry; no number if there is one that is none."""
    if not part.numel():
        return 0.0
    low, high = part.aminmax()
    return float(torch.maximum(-low, high))


def squares(total: torch.Tensor) -> int:
    """The sum of the squares of int64 integers, of which none is beyond 2**62: exactly, so that sums over parts of a
    vector add up to that over all of it."""
    found = 0
    for chunk in total.abs().split(CHUNK):
        limbs = [(chunk >> LIMB * place) & ((1 << LIMB) - 1) for place in range(3)]
        used = [place for place, limb in enumerate(limbs) if bool(limb.any())]
        for one in used:
            for other in (place for place in used if place >= one):
                product = int((limbs[one] * limbs[other]).sum())
                found += product << LIMB * (one + other) + (one != other)
    return found
