"""How many rows the busiest worker of an expert group gets, of the mean: a quantile over micro-batches and layers.

The load of an expert over the mean of all varies with a standard deviation s. Of that a part lasts, whatever is read; a
part is of the text, which differs from sample to sample and is averaged over the n samples of an expert group's
micro-batch; and a part is chance, of T n tokens that choose K of E experts each:

    s^2 = lasting^2 + (by_text^2 + (E/K - 1) / T) / n

A worker with h of them has the mean of h: h draws without replacement from E, whose mean is 1. Of `ep` such workers the
busiest lies, at the quantile q,

    1 + s sqrt((E - h) / (h (E - 1))) z(q, ep),        z(q, m) = the standard normal's quantile at q^(1/m)

over the mean, and at most where every token sends it all that it may. The deviation is exact; that the loads are normal
is not, with few samples above all. It is 1 with ep 1, and with h = 1 what MaxVio says.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from statistics import NormalDist, fmean

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from shoal_workloads.model.config import ModelConfig

__all__ = ["RoutingConfig", "busiest", "measured"]

MORE = 1.25
"""Of how far MaxVio changes: assumed."""
DRAWS, HALVINGS = 1000, 12
"""Of a share that is looked for: it is known to a few hundredths."""


class RoutingConfig(BaseModel):
    """How unevenly tokens are expected to choose experts: what a GPU must have memory for.

    The deviations are assumptions; `shoal plan --like RUN` says what they were in a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    quantile: float = Field(
        default=0.99, gt=0, lt=1, description="of micro-batches and layers, the share whose rows must fit"
    )
    lasting: float = Field(
        default=0.05, ge=0, description="standard deviation of the experts' loads over the mean that lasts"
    )
    by_text: float = Field(default=1.0, ge=0, description="the same of an expert's load from sample to sample")


def busiest(routing: RoutingConfig, model: ModelConfig, ep: int, samples: int, length: int) -> float:
    """Rows of the busiest of `ep` workers over the mean, in a layer of a micro-batch of which they have `samples` of
    `length` tokens together."""
    if ep == 1:
        return 1.0
    experts, held = model.n_experts, model.n_experts // ep
    chance = (experts / model.top_k - 1) / length
    one = sqrt(routing.lasting**2 + (routing.by_text**2 + chance) / samples)
    worker = one * sqrt((experts - held) / (held * (experts - 1)))
    most = ep * min(model.top_k, held) / model.top_k
    return min(most, 1 + worker * at(routing.quantile, ep))


def measured(
    violations: Sequence[Sequence[float]], model: ModelConfig, samples: int, length: int, quantile: float
) -> RoutingConfig:
    """From what a run recorded: MaxVio of every step and router, (steps, routers), over `samples` of `length` tokens a
    step.

    The whole deviation is that by which MaxVio's quantile is the busiest expert's. How much of it is sampling, and not
    lasting, is told by how far MaxVio changes from one step to the next: as far as where two steps' loads, normal, have
    so much in common, and `MORE` than that, since what is sampling and is taken to last would be missed in small
    batches.
    """
    experts = model.n_experts
    known = sorted(value for step in violations for value in step)
    whole = quantile_of(known, quantile) / at(quantile, experts)
    changes = [
        (one - other) ** 2 for before, after in pairwise(violations) for one, other in zip(before, after, strict=True)
    ]
    square = fmean(value**2 for value in known)
    sampled = sampled_share(MORE * fmean(changes) / 2 / square, experts) if changes and square else 1.0
    chance = (experts / model.top_k - 1) / length
    by_text = max(0.0, whole**2 * sampled * samples - chance)
    return RoutingConfig(quantile=quantile, lasting=whole * sqrt(1 - sampled), by_text=sqrt(by_text))


def sampled_share(changed: float, experts: int) -> float:
    """Of the variance of the loads of `experts`, the share that is drawn anew for every step, where the most of them
    changes so much: the mean of half the square of its change over that of its square. Drawn, the same each time."""
    random = np.random.default_rng(0)
    lasting, one, other = random.standard_normal((3, DRAWS, experts))

    def change(share: float) -> float:
        first, second = ((sqrt(1 - share) * lasting + sqrt(share) * new).max(axis=1) for new in (one, other))
        return float(((first - second) ** 2).mean() / (first**2 + second**2).mean())

    low, high = 0.0, 1.0
    if changed >= change(high):
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if change(middle) < changed else (low, middle)
    return high


def at(quantile: float, count: int) -> float:
    """What the most of `count` standard normals lies below with this probability."""
    return NormalDist().inv_cdf(quantile ** (1 / count))


def quantile_of(ordered: Sequence[float], quantile: float) -> float:
    """Between the two values that lie next to it."""
    place = quantile * (len(ordered) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
