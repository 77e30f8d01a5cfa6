"""Everything that the page shows of one run, and what of it is new to whoever has seen some already. Pure: the record
is handed in as it grows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from shoal.dashboard.buckets import RATE, curves, figures_of, size_for, values_of
from shoal.dashboard.crew import Crew
from shoal.dashboard.story import entry
from shoal.printable import printable, printable_values
from shoal.record.columns import Columns
from shoal.record.status import unheard
from shoal.report.history import stays
from shoal.report.lanes import lanes

__all__ = ["FIGURES", "LATELY", "Picture", "Seen"]

FIGURES = ("loss", RATE, "grad_norm", "lr")
"""What is drawn unless something else is asked for."""
LATELY = 50
"""Steps whose median is how fast a run is now."""
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """What somebody has of a picture: steps of which `epoch`, in buckets of which size, entries of the story, events
    and which state of the live picture; `problem`: what was told to be wrong with the record."""

    epoch: int = -1
    count: int = 0
    size: int = 0
    told: int = 0
    events: int = -1
    status: int = -1
    problem: str | None = None


class Picture:
    """One run. `columns`, `epoch`: its steps (`shoal.record.columns.StepColumns`)."""

    def __init__(self) -> None:
        self.columns, self.epoch = Columns(), 0
        self.crew = Crew()
        self.events: list[Event] = []
        self.told: list[dict[str, Any]] = []
        self._status: dict[str, Any] | None = None
        self._versions = 0
        self._counts = {"deaths": 0, "nodes_lost": 0, "recoveries": 0, "steps_lost": 0}
        self._next_commits: list[float] = []
        self._begun: Event | None = None
        self._ended: Event | None = None
        self._drawn = self._draw()

    def take_events(self, events: Iterable[Event]) -> None:
        """New lines of the journal, in order. What is drawn of them is made here: where a field of one is not what
        docs/record.md says, this fails, and what was drawn before stays.
        """
        for raw in events:
            event = printable_values(raw)
            self.events.append(event)
            self.crew.take(event)
            self._count(event)
            if (told := entry(raw)) is not None:
                self.told.append(told)
        self._drawn = self._draw()

    def take_status(self, status: dict[str, Any] | None) -> None:
        """The live picture as it is now (`shoal.record.status.aged`); None: there is none."""
        self._status = None if status is None else printable_values(status)
        self._versions += 1

    def since(self, seen: Seen, names: Sequence[str] = FIGURES) -> tuple[dict[str, Any], Seen]:
        """What is new to one who has `seen` that much of it, by parts of the page, and what he has seen then. Empty:
        nothing is new."""
        count, size = self.columns.count, size_for(self.columns.count)
        now = Seen(self.epoch, count, size, len(self.told), len(self.events), self._versions, seen.problem)
        if now == seen:
            return {}, now
        found: dict[str, Any] = {"head": self.head()}
        if (now.epoch, now.count, now.size) != (seen.epoch, seen.count, seen.size):
            same = (now.epoch, now.size) == (seen.epoch, seen.size)
            after = seen.count // size if same else 0
            found["curves"] = curves(self.columns, names, 0, count, size, after)
            found["figures"] = [printable(name) for name in figures_of(self.columns)]
        if now.told != seen.told:
            found["story"] = {"at": seen.told, "entries": self.told[seen.told :]}
        if now.events != seen.events:
            found |= self._drawn
        if now.status != seen.status or now.events != seen.events:
            found["quiet"] = self.quiet()
        return found, now

    def window(self, names: Sequence[str], first: float, last: float) -> dict[str, Any]:
        """The curves from step `first` to step `last`, both counted."""
        rows = self.columns["step"].searchsorted([first, last + 1])
        return curves(self.columns, names, int(rows[0]), int(rows[1]), size_for(int(rows[1] - rows[0])))

    def head(self) -> dict[str, Any]:
        """How the run is doing, in figures."""
        status, count = self._status or {}, self.columns.count
        last = max(0, count - LATELY)
        seconds = self.columns["seconds"][last:]
        rates = values_of(self.columns, RATE, last, count)
        steps = None if self._begun is None else self._begun.get("steps")
        return {
            "run_id": status.get("run_id") or (self._begun or {}).get("run_id"),
            "status": self._state(),
            "reason": (self._ended or {}).get("reason"),
            "silent": bool(status.get("silent", self._ended is None)),
            "age": status.get("age"),
            "step": int(self.columns["step"][-1]) + 1 if count else 0,
            "steps": status.get("steps") or steps,
            "loss": _number(self.columns["loss"][-1]) if count else None,
            "tokens": _number(self.columns["tokens"].sum()),
            "rate": median(rates.tolist()) if count else None,
            "step_seconds": median(seconds.tolist()) if count else None,
            "behind": status.get("behind"),
            "asked": status.get("asked"),
            "generation": self.crew.generation,
            "started": None if self._begun is None else self._begun["time"],
            "last": max([0.0, *self.columns["time"][-1:].tolist(), *(e["time"] for e in self.events[-1:])]) or None,
            "next_commit": median(self._next_commits) if self._next_commits else None,
            **self._counts,
            **self.crew.counts,
        }

    def heldout(self) -> dict[str, list[list[float]]]:
        """Every figure of the evaluations: `[step, value]` of each, the last one of a step."""
        found: dict[str, dict[float, float]] = {}
        for event in self.events:
            if event["kind"] == "evaluation" and isinstance(event.get("step"), int):
                for name, value in event.items():
                    if name not in ("time", "step", "seq", "tokens") and _number(value) is not None:
                        found.setdefault(name, {})[event["step"]] = float(value)
        return {name: [[step, values[step]] for step in sorted(values)] for name, values in found.items()}

    def lanes(self) -> dict[str, Any]:
        """Who sat where when: `rows` of a node and its stays (cell, start, end or None, whether it died then); and
        `sessions`: when each began (unix seconds)."""
        struck = {event.get("node") for event in self.events if event["kind"] in ("death", "node_lost")}
        deaths = {(event["actor"], event["time"]) for event in self.events if event["kind"] == "death"}
        rows = [
            {
                "node": node,
                "stays": [
                    [
                        stay.cell,
                        stay.start,
                        None if stay.end == math.inf else stay.end,
                        (stay.actor, stay.end) in deaths,
                    ]
                    for stay in mine
                ],
            }
            for node, mine in lanes(stays(self.events, math.inf), struck)
        ]
        return {"rows": rows, "sessions": [e["time"] for e in self.events if e["kind"] == "run_started"]}

    def quiet(self) -> dict[str, float]:
        """Workers of which nothing was heard for a while: seconds by actor."""
        found = {} if self._status is None else unheard(self._status)
        return {actor: round(seconds, 1) for actor, seconds in found.items()}

    def _draw(self) -> dict[str, Any]:
        return {"map": self.crew.picture(), "lanes": self.lanes(), "heldout": self.heldout()}

    def _state(self) -> str:
        if self._status is not None:
            return str(self._status["status"])
        if self._ended is not None:
            return str(self._ended.get("status"))
        return "starting" if not self.columns.count else "running"

    def _count(self, event: Event) -> None:
        match event["kind"]:
            case "run_started":
                self._begun, self._ended = event, None
            case "run_ended":
                self._ended = event
            case "death":
                self._counts["deaths"] += 1
            case "node_lost":
                self._counts["nodes_lost"] += 1
            case "rewound":
                self._counts["steps_lost"] += int(event.get("lost") or 0)
            case "recovery":
                self._counts["recoveries"] += 1
                if _number(event.get("next_commit")) is not None:
                    self._next_commits.append(float(event["next_commit"]))


def _number(value: Any) -> float | None:
    told = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if told else None
