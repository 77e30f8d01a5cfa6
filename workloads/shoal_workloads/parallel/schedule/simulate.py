"""How long a schedule takes when its actions take known times: idle time, makespan, micro-batches in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal_workloads.parallel.schedule.actions import Kind, Pair, Schedule, Step
from shoal_workloads.parallel.schedule.walk import actions_of, needs, product, walk

__all__ = ["Costs", "Span", "Timeline", "simulate", "timeline"]


@dataclass(frozen=True)
class Costs:
    """Time of each action, any unit; where the stages differ, `scale` is the factor of each.

    Attributes:
        forward, backward: backward is the full one; the input's gradient alone takes backward - weight.
        weight: gradient of the weights alone.
        pair: forward and full backward together.
        scale: one factor a stage; empty: 1 for all. A pair takes its two factors weighted by the work of its parts.
    """

    forward: float = 1.0
    backward: float = 2.0
    weight: float = 1.0
    pair: float = 3.0
    scale: Sequence[float] = ()

    def __call__(self, step: Step) -> float:
        if isinstance(step, Pair):
            alone = self(step.forward) + self(step.backward)
            return alone * self.pair / (self.forward + self.backward) if self.scale else self.pair
        base = {"F": self.forward, "B": self.backward, "I": self.backward - self.weight, "W": self.weight}[step.kind]
        return base * self.scale[step.stage] if self.scale else base


@dataclass(frozen=True)
class Span:
    """A step and when it ran."""

    step: Step
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """A step of the whole pipeline, rank by rank.

    Attributes:
        spans: what each rank did when, in order.
        makespan: from the first start to the last end.
        idle: what each rank waited of it.
        peak_in_flight: the most forwards whose weights' gradients were still to come, a rank: activations held.
    """

    spans: tuple[tuple[Span, ...], ...]
    makespan: float
    idle: tuple[float, ...]
    peak_in_flight: tuple[int, ...]

    @property
    def idle_share(self) -> float:
        """The part of all ranks' time that was waiting."""
        return sum(self.idle) / (self.makespan * len(self.idle))


def timeline(spans: Sequence[Sequence[Span]]) -> Timeline:
    """The figures of what was simulated or measured; times of all ranks on one clock."""
    begin = min(rank[0].start for rank in spans if rank)
    makespan = max(rank[-1].end for rank in spans if rank) - begin
    idle = tuple(makespan - sum(span.end - span.start for span in rank) for rank in spans)
    peaks = []
    for rank in spans:
        held = peak = 0
        for span in rank:
            kinds = [action.kind for action in actions_of(span.step)]
            held += "F" in kinds
            peak = max(peak, held)
            held -= sum(kind in ("B", "W") for kind in kinds)
        peaks.append(peak)
    return Timeline(tuple(tuple(rank) for rank in spans), makespan, idle, tuple(peaks))


def simulate(schedule: Schedule, cost: Callable[[Step], float] | None = None, send: float = 0.0) -> Timeline:
    """Run `schedule`: every step starts when its rank is free and its data has come.

    Args:
        cost: time of a step; `Costs()` where not given.
        send: time from the end of a step to where its data is used, on another rank.

    Raises:
        ValueError: the schedule cannot run to its end.
    """
    cost = Costs() if cost is None else cost
    made: dict[tuple[Kind, int, int], tuple[int, float]] = {}
    free = [0.0] * schedule.ranks
    spans: list[list[Span]] = [[] for _ in range(schedule.ranks)]
    for rank, step in walk(schedule):
        start = free[rank]
        for action in actions_of(step):
            for need in needs(action, schedule.stages):
                where, end = made[need]
                start = max(start, end if where == rank else end + send)
        end = free[rank] = start + cost(step)
        spans[rank].append(Span(step, start, end))
        for action in actions_of(step):
            made[product(action)] = (rank, end)
    return timeline(spans)
