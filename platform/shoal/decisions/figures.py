"""Which replicas disagree with the others, and which steps are no numbers. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["diverged", "finite", "not_finite", "suspects"]


def finite(figures: Mapping[str, Any]) -> bool:
    """Whether a step's loss and gradient norm are numbers, as far as they are known (on record null is none)."""
    known = [figures[name] for name in ("loss", "grad_norm") if name in figures]
    return all(value is not None and math.isfinite(value) for value in known)


def not_finite(steps: Sequence[Mapping[str, Any]]) -> int:
    """How many of the last of `steps`, in a row, were no numbers."""
    return next((row for row, figures in enumerate(reversed(steps)) if finite(figures)), len(steps))


def diverged(steps: int) -> str:
    """Why a run ends whose last `steps` steps were no numbers."""
    which = "step was" if steps == 1 else f"{steps} steps were"
    return f"training has diverged: the last {which} not finite (loss or gradient norm)"


def suspects(checksums: Sequence[float], cells: Sequence[int], ranks: int) -> list[int]:
    """Cells whose state differs from what most cells hold, given every worker's checksum in the order of the crew.

    Without a majority for every rank nobody can be named: all cells are returned (none of them can be trusted).
    """
    bad: set[int] = set()
    for rank in range(ranks):
        sums = dict(zip(cells, checksums[rank::ranks], strict=True))
        value, times = Counter(sums.values()).most_common(1)[0]
        if times == len(cells):
            continue
        if 2 * times <= len(cells):
            return list(cells)
        bad |= {cell for cell, found in sums.items() if found != value}
    return sorted(bad)
