"""Which checkpoints of a run stay. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Keep", "Saved", "ranked", "staying"]


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: `finite`: it was saved after a step that was a number; `metrics`: figures of its last step,
    and, if it was evaluated, `bpb`: bits per byte on held-out text."""

    steps: int
    finite: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Keep:
    """What stays: the `last` ones; the first in every span of `every` steps for good (0: none); the `best` ones, which
    have the least of the metric `score`, or, if `most`, the most."""

    last: int = 2
    every: int = 0
    best: int = 0
    score: str = "bpb"
    most: bool = False


def ranked(found: Iterable[Saved], keep: Keep) -> list[Saved]:
    """Those that have the metric `keep.score`, worst first; of equals the earlier is the better."""
    sign = 1.0 if keep.most else -1.0
    told = [one for one in found if not math.isnan(one.metrics.get(keep.score, math.nan))]
    return sorted(told, key=lambda one: (sign * one.metrics[keep.score], -one.steps))


def staying(found: Iterable[Saved], keep: Keep, used: Collection[int] = ()) -> set[int]:
    """Steps of the checkpoints that stay. used: of those that somebody may be reading.

    The newest stays whatever it is, and so does the newest healthy one: what was saved after a step that was no number
    takes no healthy one's place.
    """
    whole = sorted(found, key=lambda one: one.steps)
    healthy = [one for one in whole if one.finite]
    stays = {one.steps for one in [*whole[-1:], *healthy[-max(1, keep.last) :]]}
    stays |= {one.steps for one in whole if one.steps in used}
    if keep.every:
        first: dict[int, int] = {}
        for one in healthy:
            first.setdefault(one.steps // keep.every, one.steps)
        stays |= {steps for span, steps in first.items() if span}
    if keep.best:
        stays |= {one.steps for one in ranked(healthy, keep)[-keep.best :]}
    return stays
