"""Seconds for one of each amount, from measured seconds of several."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from shoal_workloads.estimate.amounts import Amounts

__all__ = ["fitted"]


def fitted(
    amounts: Sequence[Amounts], measured: Sequence[float], known: Sequence[float] | None = None
) -> dict[str, float]:
    """The costs, none below zero, with which all of `measured` are met best, each relative to itself: of every choice
    of amounts the one whose least squares are least. `known`: of the measured seconds those that are accounted for.

    A few amounts, so that all choices can be tried."""
    names = list(dict.fromkeys(name for one in amounts for name in one))
    whole = np.array(measured, dtype=float)
    rest = (whole - (np.zeros_like(whole) if known is None else np.array(known))) / whole
    table = np.array([[one.get(name, 0.0) for name in names] for one in amounts]) / whole[:, None]
    scale = np.where((most := table.max(axis=0)) > 0, most, 1.0)
    table /= scale
    best, costs = float((rest**2).sum()), np.zeros(len(names))
    for count in range(1, len(names) + 1):
        for chosen in map(list, combinations(range(len(names)), count)):
            found, *_ = np.linalg.lstsq(table[:, chosen], rest, rcond=None)
            error = float(((table[:, chosen] @ found - rest) ** 2).sum())
            if (found >= 0).all() and error < best * (1 - 1e-9):
                best, costs = error, np.zeros(len(names))
                costs[chosen] = found
    return dict(zip(names, (costs / scale).tolist(), strict=True))
