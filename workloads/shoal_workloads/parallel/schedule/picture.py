"""A measured pipeline step beside the planned one, as plain lists that can be written to a record and drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from shoal_workloads.parallel.schedule.actions import Schedule, Step
from shoal_workloads.parallel.schedule.simulate import Span, Timeline, simulate, timeline
from shoal_workloads.parallel.schedule.walk import actions_of, restrict

__all__ = ["mean_times", "picture"]


def mean_times(spans: Sequence[Sequence[Span]]) -> Callable[[Step], float]:
    """The mean time of each kind of action, or of a pair, at each stage: costs for `simulate`."""
    found: dict[tuple[tuple[str, int], ...], list[float]] = defaultdict(list)
    for rank in spans:
        for span in rank:
            found[_what(span.step)].append(span.end - span.start)
    means = {what: sum(times) / len(times) for what, times in found.items()}
    return lambda step: means[_what(step)]


def _what(step: Step) -> tuple[tuple[str, int], ...]:
    return tuple((action.kind, action.stage) for action in actions_of(step))


def picture(schedule: Schedule, present: Collection[int], spans: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """`planned` and `measured`, each a list a rank of [step as text, start, end] from 0, and their idle shares.

    Planned is what the schedule gives when every action takes its mean measured time and messages take none.

    Args:
        present: the micro-batches of `schedule` that there were.
        spans: when each rank did its steps of them, in order, on one clock, in seconds.
    """
    done = restrict(schedule, present)
    own = [
        [Span(step, span.start, span.end) for step, span in zip(order, rank, strict=True)]
        for order, rank in zip(done.orders, spans, strict=True)
    ]
    measured, planned = timeline(own), simulate(done, mean_times(own))
    return {
        "schedule": schedule.name,
        "planned": _plain(planned),
        "measured": _plain(measured),
        "planned_idle": planned.idle_share,
        "measured_idle": measured.idle_share,
    }


def _plain(found: Timeline) -> list[list[tuple[str, float, float]]]:
    begin = min(rank[0].start for rank in found.spans if rank)
    return [[(str(span.step), span.start - begin, span.end - begin) for span in rank] for rank in found.spans]
