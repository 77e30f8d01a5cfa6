"""A run's record as the report needs it: figures, clock, and who sat where when. Values only, no pictures."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.names import node_of
from shoal.printable import printable_values
from shoal.record import layout, read
from shoal.record.generations import Membership, membership
from shoal.record.jsonl import read_json
from shoal.record.masking import flat_masked
from shoal.record.shapes import Shape, shapes
from shoal.record.summary import sessions, summarize

__all__ = ["Clock", "History", "Stay", "stays", "unigram_entropy"]


class Clock:
    """Unix time -> seconds of the run: the time between a session's end and its resumption is left out."""

    def __init__(self, spans: Sequence[Mapping[str, float]]) -> None:
        self._starts = [span["start"] for span in spans]
        self._ends = [span["end"] for span in spans]
        self._before = [sum(span["seconds"] for span in spans[:index]) for index in range(len(spans))]

    def __call__(self, time: float) -> float:
        index = max(0, bisect_right(self._starts, time) - 1)
        if not self._starts:
            return 0.0
        return self._before[index] + max(0.0, min(time, self._ends[index]) - self._starts[index])

    @property
    def seams(self) -> list[float]:
        """Where a later session begins."""
        return self._before[1:]


@dataclass(frozen=True)
class Stay:
    """A worker's stretch of time with a cell, or as a spare (`cell` None); unix seconds."""

    actor: str
    node: str
    cell: str | None
    start: float
    end: float


def stays(events: Sequence[Mapping[str, Any]], end: float) -> list[Stay]:
    """Who belonged to which cell when, from the journal alone; `end` closes what is still open."""
    found: list[Stay] = []
    here: dict[str, tuple[str | None, float]] = {}  # actor -> its cell, since when
    members: Membership | None = None

    def move(actor: str, cell: str | None, time: float) -> None:
        leave(actor, time)
        here[actor] = (cell, time)

    def leave(actor: str, time: float) -> None:
        if actor in here:
            cell, start = here.pop(actor)
            found.append(Stay(actor, node_of(actor), cell, start, max(start, time)))

    for event in events:
        time, kind = event["time"], event["kind"]
        if kind == "worker_ready":
            move(event["actor"], None, time)
        elif kind == "generation":
            members = membership(members, event)
            seats = {actor: str(cell) for cell, crew in members.cells.items() for actor in crew}
            for actor in [*seats, *here]:
                if actor not in here or here[actor][0] != seats.get(actor):
                    move(actor, seats.get(actor), time)
        elif kind == "death":
            leave(event["actor"], time)
        elif kind in ("run_started", "run_ended"):
            for actor in list(here):
                leave(actor, time)
    for actor in list(here):
        leave(actor, end)
    return sorted(found, key=lambda stay: (stay.node, stay.actor, stay.start))


def unigram_entropy(*places: Any) -> float | None:
    """The first number named `unigram_entropy` (nats a token) in `places`, at any depth."""
    for place in places:
        if isinstance(place, Mapping):
            value = place.get("unigram_entropy")
            if isinstance(value, int | float):
                return float(value)
            inner = unigram_entropy(*place.values())
        elif isinstance(place, list | tuple):
            inner = unigram_entropy(*place)
        else:
            continue
        if inner is not None:
            return inner
    return None


@dataclass(frozen=True)
class History:
    """Everything the report tells."""

    path: Path
    run: dict[str, Any]  # as run.json
    steps: list[dict[str, Any]]
    events: list[dict[str, Any]]
    config: dict[str, Any]  # flat, credentials masked
    stays: list[Stay]
    shapes: list[Shape]
    clock: Clock
    entropy: float | None  # of the tokens' frequencies, nats

    @classmethod
    def read(cls, path: Path) -> History:
        """Read the run directory `path`; all texts of it are fit to be shown.

        Raises:
            UserError: the record is damaged.
        """
        steps, events = read.steps(path), printable_values(read.events(path))
        config = printable_values(read.config(path))
        spans = sessions(steps, events)
        status = read_json(path / layout.STATUS) or {}
        return cls(
            path=path,
            run=printable_values(summarize(path)),
            steps=steps,
            events=events,
            config=flat_masked(config),
            stays=stays(events, spans[-1]["end"] if spans else 0.0),
            shapes=shapes(events),
            clock=Clock(spans),
            entropy=unigram_entropy(status, events, config),
        )

    def kind(self, *kinds: str) -> list[dict[str, Any]]:
        """The events of these kinds, in order."""
        return [event for event in self.events if event["kind"] in kinds]

    @property
    def end(self) -> float:
        """Unix time of the last line of the record."""
        return max([0.0, *(line["time"] for line in (*self.events[-1:], *self.steps[-1:]))])

    def committed(self, time: float) -> int:
        """How many steps were committed at `time` (unix seconds)."""
        return bisect_right([step["time"] for step in self.steps], time)
