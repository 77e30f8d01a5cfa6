"""Which replicas disagree with the others. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["suspects"]


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
