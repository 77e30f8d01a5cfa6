"""The shapes that a run's cells had, one after the other: how many trained, and of how many workers each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.record.generations import Membership, membership

__all__ = ["Shape", "shapes"]

AXES = ("pp", "fsdp", "ep")


@dataclass(frozen=True)
class Shape:
    """From `time` on (unix seconds) `cells` cells of `workers` each trained. `axes`: sizes of a cell's axes, where the
    record tells them; `reshaped`: cells were of others before."""

    time: float
    cells: int
    workers: int
    axes: str = ""
    reshaped: bool = False

    def __str__(self) -> str:
        return f"{self.cells} x {self.workers}" + (f" ({self.axes})" if self.axes else "")


def shapes(events: Iterable[Mapping[str, Any]]) -> list[Shape]:
    """Of a journal, the first of each session included; of those that lasted for no step of the record, too.

    Raises:
        ValueError: see `membership`.
    """
    found: list[Shape] = []
    last: Membership | None = None
    for event in events:
        if event["kind"] == "run_started":
            last = None
        elif event["kind"] == "generation":
            before, last = last, membership(last, event)
            now = shape_of(last, before)
            new = before is None or now.reshaped
            if new or not found or (found[-1].cells, found[-1].workers) != (now.cells, now.workers):
                found.append(now)
    return found


def shape_of(now: Membership, before: Membership | None) -> Shape:
    """That of a generation."""
    told = now.shape or {}
    axes = ", ".join(f"{name} {told[name]}" for name in AXES if told.get(name, 1) > 1)
    workers = max(map(len, now.cells.values()), default=0)
    reshaped = before is not None and number_of(now) != number_of(before)
    return Shape(now.time, len(now.cells), workers, axes, reshaped)


def number_of(membership: Membership) -> int:
    return int((membership.shape or {}).get("number", 0))
