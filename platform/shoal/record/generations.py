"""Who holds what in each generation, in the journal and in `plan.json`. Pure.

A small generation is told whole. One of many workers is told by what changed against the generation before, so that a
record grows with what happens to a run, not with its size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ROOM", "WHOLE", "Membership", "Newest", "history", "membership", "people", "told"]

WHOLE = 256
"""Workers up to whose number a generation is told whole, always."""
ROOM = 2048
"""Workers that the generations in `plan.json` name, all together, unless the newest alone names more."""


@dataclass(frozen=True)
class Membership:
    """A generation: `cells` are the actors of each cell by its number, in the order of their ranks; `attempts` says
    which formation of each cell it is; `step` is how many steps were committed when it began, `time` unix seconds;
    `shape`: number, cells that the run wants and axes of each, if it is not the one that the run began with."""

    generation: int
    step: int
    time: float
    cells: Mapping[str, Sequence[str]] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    shape: Mapping[str, int] | None = None

    @property
    def workers(self) -> int:
        """How many actors it has."""
        return people(self.cells)


def people(cells: Mapping[str, Sequence[str]]) -> int:
    """Actors of some cells."""
    return sum(map(len, cells.values()))


def told(before: Membership | None, now: Membership) -> dict[str, Any]:
    """The fields of the journal's line on the generation `now`. `before`: the last one that the same writer told."""
    fields: dict[str, Any] = {"generation": now.generation, "step": now.step, "live": len(now.cells)}
    fields["shape"] = now.shape
    if before is None or now.workers <= WHOLE:
        return fields | {"cells": now.cells, "attempts": now.attempts}
    changed = [
        cell
        for cell, crew in now.cells.items()
        if before.cells.get(cell) != crew or before.attempts.get(cell) != now.attempts.get(cell)
    ]
    return fields | {
        "since": before.generation,
        "changed": {cell: now.cells[cell] for cell in changed},
        "attempts": {cell: now.attempts[cell] for cell in changed},
        "gone": [cell for cell in before.cells if cell not in now.cells],
    }


def membership(before: Membership | None, event: Mapping[str, Any]) -> Membership:
    """The generation that a line of the journal (`kind` is `generation`) tells of. `before`: the one told before it.

    Raises:
        ValueError: the line tells of changes against a generation that is not `before`.
    """
    number, step, time = int(event.get("generation", -1)), int(event.get("step") or 0), float(event["time"])
    cells, attempts = event.get("cells") or {}, event.get("attempts") or {}
    since, shape = event.get("since"), event.get("shape")
    if since is None:
        return Membership(number, step, time, cells, attempts, shape)
    if before is None or before.generation != since:
        raise ValueError(f"generation {number} is told by its changes against {since}, which is not told before it")
    left = {cell: crew for cell, crew in before.cells.items() if cell not in event["gone"]}
    tries = {cell: before.attempts[cell] for cell in left}
    return Membership(number, step, time, left | event["changed"], tries | attempts, shape)


def history(events: Iterable[Mapping[str, Any]]) -> list[Membership]:
    """All generations of a journal, in order. Their cells share what they have in common.

    Raises:
        ValueError: see `membership`.
    """
    found: list[Membership] = []
    for event in events:
        if event["kind"] == "generation":
            found.append(membership(found[-1] if found else None, event))
    return found


class Newest:
    """What `plan.json` holds: the newest generations whole, as many as there is `ROOM` for, and at least one.

    `found`: the generations in the file that is there.
    """

    def __init__(self, found: Iterable[Mapping[str, Any]]) -> None:
        self._entries = deque(dict(entry) for entry in found)
        self._sizes = deque(people(entry["assignment"]) for entry in self._entries)
        self._changed = 0
        """Workers that were told since the file was last due."""

    def add(self, now: Membership, changed: int) -> bool:
        """Take a generation of which `changed` workers were told. Whether the file is due: it is as long as there is
        room in it, and else once as many workers were told as it names."""
        self._entries.append({"generation": now.generation, "time": now.time, "assignment": now.cells})
        self._sizes.append(now.workers)
        while len(self._entries) > 1 and sum(self._sizes) > ROOM:
            self._entries.popleft()
            self._sizes.popleft()
        self._changed += changed
        if sum(self._sizes) > ROOM and self._changed < sum(self._sizes):
            return False
        self._changed = 0
        return True

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The generations for the file, the newest last."""
        return list(self._entries)
