"""How often to save: as often as loses least, by what a save costs and how often something fails. Pure.

A save costs training the seconds for which it stands still; a failure costs what was trained since the last save. The
interval at which the two together are least is that of Young and Daly (J. T. Daly, "A higher order estimate of the
optimum checkpoint interval for restart dumps", 2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LONGEST", "PRIOR", "Cost", "between", "lost", "mean_time", "steps_between"]

PRIOR = 54 * 24 * 3600 * 16_384 / 466
"""Seconds a worker between two failures, before this run has seen any: Llama 3's 466 in 54 days on 16,384 GPUs."""
WEIGHT = 24 * 3600.0
"""Seconds of a run that count as much as what is known beforehand, at most."""
LONGEST = 3600.0
"""Seconds after which a state is saved however seldom anything fails."""
DEAREST = 0.05
"""Part of the time that saves may take from training, however often something fails."""
BUSY = 0.5
"""Part of the time that may be spent on writing in the background."""


@dataclass(frozen=True)
class Cost:
    """Of a save, in seconds: `lost`, for which training stood still; `written`, until it was whole."""

    lost: float
    written: float


def mean_time(workers: int, seen: int, seconds: float, alone: float = PRIOR) -> float:
    """Seconds between two failures of a run of `workers` that has seen so many of them in `seconds`. What is known
    beforehand (`alone`: of one worker) counts as a run of its own, of one failure or of a day."""
    prior = alone / max(1, workers)
    before = min(prior, WEIGHT)
    return (before + max(0.0, seconds)) / (before / prior + max(0, seen))


def between(cost: Cost, mean: float) -> float:
    """Seconds of training between two saves, where something fails every `mean` seconds."""
    best = daly(cost.lost, mean)
    return max(min(best, LONGEST), cost.lost / DEAREST, cost.written / BUSY)


def daly(lost: float, mean: float) -> float:
    """The interval that loses least."""
    if lost >= 2 * mean:
        return mean
    part = lost / (2 * mean)
    return math.sqrt(2 * lost * mean) * (1 + math.sqrt(part) / 3 + part / 9) - lost


def steps_between(cost: Cost, step: float, mean: float) -> int:
    """The same in steps of `step` seconds; one at least."""
    return max(1, round(between(cost, mean) / max(step, 1e-9)))


def lost(interval: float, cost: float, mean: float, back: float = 0.0) -> float:
    """Part of the time that saves and failures take, to first order. back: seconds to go on after a failure."""
    return cost / (interval + cost) + (interval / 2 + back) / mean
