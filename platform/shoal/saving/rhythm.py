"""How often to copy the state into memory: as often as takes no more than a part of the steps' time. Pure."""

from __future__ import annotations

import math

__all__ = ["MOST", "copies_every"]

SHARE = 0.02
"""Part of the time of steps that copies may take."""
MOST = 1000
"""Steps after which a copy is made, however dear it is."""


def copies_every(part: float, share: float = SHARE) -> int:
    """Steps between two copies, each of which stops training for `part` of a step.

    >>> copies_every(0.01), copies_every(0.2), copies_every(1e9)
    (1, 10, 1000)
    """
    return min(max(1, math.ceil(part / share)), MOST) if math.isfinite(part) else MOST
