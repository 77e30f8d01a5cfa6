"""What breaks, how often, and what it takes along.

Rates and causes are those of Llama 3's pre-training: 466 interruptions in 54 days on 16,384 GPUs, 47 of them planned
and 419 not ("The Llama 3 Herd of Models", arXiv:2407.21783, section 3.3.4 and table 5, which lists the 419 by cause).
What a cause takes along (a worker or its node), how it shows and how long the repair takes is not in the paper: it is
assumed here, and said in `Cause`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

__all__ = ["CAUSES", "PREEMPTED", "Cause", "Failure", "draw", "failures_a_second", "preemptions"]

OBSERVED_GPU_HOURS = 54 * 24 * 16_384
HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Cause:
    """`count`: how often in Llama 3's 54 days. `takes`: the worker's process only, or its whole node. `shows`: a
    connection that closes, silence, or a notice before. `repair`: seconds until the node is back."""

    name: str
    count: int
    takes: Literal["worker", "node"] = "node"
    shows: Literal["closed", "silent", "notice"] = "closed"
    repair: float = 24 * HOUR


CAUSES = (
    Cause("faulty GPU", 148),
    Cause("GPU HBM3 memory", 72),
    Cause("software bug", 54, takes="worker"),
    Cause("planned maintenance", 47, shows="notice", repair=2 * HOUR),
    Cause("network switch or cable", 35, shows="silent", repair=2 * HOUR),
    Cause("unplanned host maintenance", 32, shows="notice", repair=2 * HOUR),
    Cause("GPU SRAM memory", 19),
    Cause("GPU system processor", 17),
    Cause("network card", 7, shows="silent"),
    Cause("NCCL watchdog timeout", 7, takes="worker", shows="silent"),
    Cause("silent data corruption", 6),
    Cause("GPU thermal interface and sensor", 6),
    Cause("SSD", 3),
    Cause("power supply", 3),
    Cause("server chassis", 2),
    Cause("IO expansion board", 2),
    Cause("dependency", 2, takes="worker"),
    Cause("CPU", 2),
    Cause("system memory", 2),
)
PREEMPTED = Cause("preempted", 0, shows="notice", repair=HOUR)
"""A node that may be taken away is, and another comes for it: after an hour, which is assumed."""


@dataclass(frozen=True)
class Failure:
    """At `time` seconds, `cause` strikes: `place` in [0, 1) picks whom among those alive then."""

    time: float
    cause: Cause
    place: float


def failures_a_second(gpus: int, rate: float) -> float:
    """Of so many GPUs, on average. `rate`: a factor on the observed rates."""
    return rate * gpus / (OBSERVED_GPU_HOURS * HOUR) * sum(cause.count for cause in CAUSES)


def draw(gpus: int, seconds: float, rate: float, random: Random) -> Iterator[Failure]:
    """Failures of a cluster in order of time, a Poisson process. `rate`: a factor on the observed rates."""
    per_second = failures_a_second(gpus, rate)
    weights = [cause.count for cause in CAUSES]
    time = 0.0
    while per_second > 0:
        time += random.expovariate(per_second)
        if time >= seconds:
            return
        yield Failure(time, random.choices(CAUSES, weights)[0], random.random())


def preemptions(nodes: int, seconds: float, per_day: float, random: Random) -> Iterator[Failure]:
    """Nodes that are taken away, in order of time, a Poisson process. `per_day`: of a node."""
    per_second = per_day * nodes / DAY
    time = 0.0
    while per_second > 0:
        time += random.expovariate(per_second)
        if time >= seconds:
            return
        yield Failure(time, PREEMPTED, random.random())
