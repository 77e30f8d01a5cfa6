"""Bounds how many gradients of weights wait: until they are made, the inputs and outputs' gradients of all their layers
are held, which is more than what a forward pass keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from shoal_workloads.parallel.schedule.actions import Action, Schedule, Step

__all__ = ["bounded"]


def bounded(schedule: Schedule, most: int | None) -> Schedule:
    """The same schedule with at most `most` micro-batches of a rank between I and W (none: as many as it has): an I
    that would be one more becomes a B, and its W falls away. What travels, and in which order, stays."""
    if most is None:
        return schedule
    return replace(schedule, orders=tuple(tuple(_order(order, most)) for order in schedule.orders))


def _order(order: Sequence[Step], most: int) -> Iterator[Step]:
    waiting = set[tuple[int, int]]()
    for step in order:
        if isinstance(step, Action) and step.kind == "I":
            if len(waiting) < most:
                waiting.add((step.stage, step.micro_batch))
            else:
                step = replace(step, kind="B")
        elif isinstance(step, Action) and step.kind == "W":
            if (step.stage, step.micro_batch) not in waiting:
                continue
            waiting.remove((step.stage, step.micro_batch))
        yield step
