"""Curves of any length as at most so many points: of neighbouring steps the mean, the lowest and the highest, so that
no spike is lost. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from shoal.record.columns import Columns, Floats

__all__ = ["BESIDE", "MOST", "RATE", "curves", "figures_of", "size_for", "values_of"]

MOST = 1024
"""Points of a curve."""
RATE = "tokens_per_second"
"""The figure that no line has: a step's tokens over the seconds that it took by the workers' own clock."""
BESIDE = ("step", "time")
"""Of a line, what is no figure but where it stands."""


def size_for(count: int, most: int = MOST) -> int:
    """Steps to a bucket, a power of two, of which `most` hold `count` steps.

    >>> size_for(0), size_for(1024), size_for(1025), size_for(100_000)
    (1, 1, 2, 128)
    """
    size = 1
    while count > most * size:
        size *= 2
    return size


def figures_of(columns: Columns) -> list[str]:
    """Names of what can be drawn."""
    told = [name for name in columns.names if name not in BESIDE]
    return [*told, RATE] if columns.count and RATE not in told else told


def curves(columns: Columns, names: Iterable[str], first: int, last: int, size: int, after: int = 0) -> dict[str, Any]:
    """The steps in the rows from `first` up to `last`, without those in the first `after` buckets.

    `at`: number of the first bucket given; `step, time`: of each bucket's last step; `tokens`: trained on until then;
    `of`: by figure `mean`, and, where a bucket holds several steps, `low` and `high`; None where no step has it.
    """
    start = min(first + after * size, last)
    edges = np.arange(start, last, size)
    ends = np.append(edges[1:], last)[: len(edges)] - 1
    found: dict[str, Any] = {"size": size, "at": after, "count": last - first}
    for name in BESIDE:
        found[name] = columns[name][ends].tolist()
    found["tokens"] = np.cumsum(columns["tokens"][:last])[ends].tolist() if len(edges) else []
    found["of"] = {name: _bucketed(values_of(columns, name, start, last), edges - start, size) for name in names}
    return found


def values_of(columns: Columns, name: str, start: int, last: int) -> Floats:
    """One figure of the steps in these rows."""
    if name == RATE and RATE not in columns.names:
        own, arrived = (columns[clock][start:last] for clock in ("worker_seconds", "seconds"))
        return np.asarray(columns["tokens"][start:last] / np.maximum(np.where(np.isnan(own), arrived, own), 1e-9))
    return columns[name][start:last]


def _bucketed(values: Floats, edges: Any, size: int) -> dict[str, list[float | None]]:
    if not len(edges):
        return {"mean": []} if size == 1 else {"mean": [], "low": [], "high": []}
    known = ~np.isnan(values)
    counts = np.add.reduceat(known.astype(np.int64), edges)
    sums = np.add.reduceat(np.where(known, values, 0.0), edges)
    with np.errstate(invalid="ignore"):
        found = {"mean": plain(np.where(counts, sums / np.maximum(counts, 1), np.nan))}
    if size > 1:
        found |= {"low": plain(np.fmin.reduceat(values, edges)), "high": plain(np.fmax.reduceat(values, edges))}
    return found


def plain(values: Floats) -> list[float | None]:
    """As JSON has them, with the six digits that a picture shows."""
    return [None if value != value else float(f"{value:.6g}") for value in values.tolist()]
