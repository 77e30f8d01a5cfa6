"""How a run is doing, as values: from its status file and the ends of its journal and steps, so that a long run costs
no more than a short one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from shoal.names import node_of
from shoal.printable import printable
from shoal.protocol.said import Phase
from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.sentences import BACKGROUND, sentence
from shoal.record.status import OVER, snapshot, unheard

__all__ = ["Eye", "Seat", "Stand", "View", "seconds_left"]

STEPS_READ, EVENTS_READ = 1 << 20, 1 << 18
"""Bytes of the ends of the files that are looked at."""
LATELY = 200
"""Steps by which the time left and the speed are told."""
UNTOLD = BACKGROUND | {"notified", "generation", "drain"}
"""Kinds of events that are not told beside others."""
HEALING = frozenset({Phase.FORMING, Phase.READY, Phase.JOINING, Phase.LEAVING, Phase.STOPPED, Phase.FAILED})


class Stand(StrEnum):
    """How a worker is, the worst last."""

    SPARE = "spare"
    ENDED = "ended"
    """The run is over; it sat here."""
    ALIVE = "alive"
    HEALING = "healing"
    """It forms a cell, is given its state, or waits for those who are."""
    SILENT = "silent"
    GONE = "gone"
    """Nobody sits here."""


@dataclass(frozen=True)
class Seat:
    """Of a cell, a stage and a shard. `node`: where who sits here is, or was; empty if nobody knows."""

    cell: int
    stage: int
    shard: int
    node: str
    stand: Stand


@dataclass(frozen=True)
class View:
    """What is shown. Times in unix seconds, durations in seconds; None: not known. `silent`: the controller has written
    nothing for so long; `losses`: of the last steps, the last of which is step `step`."""

    run: str
    status: str
    step: int
    steps: int | None
    silent: float | None = None
    generation: int | None = None
    loss: float | None = None
    losses: Sequence[float] = ()
    tokens_per_second: float | None = None
    gpu: Mapping[str, float] = field(default_factory=dict)
    step_seconds: float | None = None
    left: float | None = None
    behind: float | None = None
    behind_most: float | None = None
    asked: int | None = None
    seats: Sequence[Seat] = ()
    spares: Sequence[str] = ()
    """Nodes of the spares."""
    events: Sequence[tuple[float, str]] = ()

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.status in OVER

    @property
    def counts(self) -> dict[str, int]:
        """How many workers are how."""
        found = {str(stand): 0 for stand in Stand if stand is not Stand.SPARE}
        for seat in self.seats:
            found[seat.stand] += 1
        found[str(Stand.SPARE)] = len(self.spares)
        return {name: number for name, number in found.items() if number}


def seconds_left(steps: Sequence[Mapping[str, Any]], wanted: int | None) -> tuple[float | None, float | None]:
    """Seconds a step by the last steps, recoveries included, and until the last of the `wanted` ones."""
    lately = steps[-LATELY:]
    if not lately:
        return None, None
    each = sum(max(0.0, float(step["seconds"])) for step in lately) / len(lately)
    return each, None if wanted is None else max(0, wanted - 1 - int(lately[-1]["step"])) * each


def seats_of(
    now: Mapping[str, Any], shape: tuple[int, int, int], dead: Mapping[tuple[int, int, int], str]
) -> list[Seat]:
    """Every seat of a run that goes on. shape: cells, stages, and shards of each; dead: nodes of those who last died in
    a seat."""
    cells, stages, shards = shape
    quiet = unheard(now)
    found: dict[tuple[int, int, int], Seat] = {}
    for worker in now["workers"]:
        coords = worker.get("coords")
        if worker["cell"] is None or not isinstance(coords, Mapping):
            continue
        at = (worker["cell"], int(coords.get("stage", 0)), int(coords.get("shard", 0)))
        stand = Stand.HEALING if worker.get("phase") in HEALING else Stand.ALIVE
        if worker["actor"] in quiet:
            stand = Stand.SILENT
        found[at] = Seat(*at, worker["node"], stand)
    wanted = [(cell, stage, shard) for cell in range(cells) for stage in range(stages) for shard in range(shards)]
    empty = {at: Seat(*at, dead.get(at, ""), Stand.GONE) for at in wanted if at not in found}
    return [seat for _, seat in sorted((found | empty).items())]


def seats_at_the_end(plan: Mapping[str, Sequence[str]], stages: int) -> list[Seat]:
    """Where workers sat in a generation of a run that is over. plan: of each cell its actors, by rank."""
    found = []
    for cell, crew in sorted((int(cell), crew) for cell, crew in plan.items()):
        per_stage = max(1, len(crew) // max(1, stages))
        found += [Seat(cell, *divmod(rank, per_stage), node_of(actor), Stand.ENDED) for rank, actor in enumerate(crew)]
    return found


def told(events: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """Events as sentences, with their times; of those that are of interest."""
    found = [(event["time"], sentence(event)) for event in events if event["kind"] not in UNTOLD]
    return [(when, text) for when, text in found if text is not None]


class Eye:
    """Looks at the run directory `path`, again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: dict[str, tuple[object, list[dict[str, Any]]]] = {}

    def look(self, now: float | None = None) -> View:
        """What is there `now` (unix seconds).

        Raises:
            UserError: the record is damaged.
        """
        with read.readable(self.path):
            return self._view(snapshot(self.path, now))

    def _view(self, now: Mapping[str, Any]) -> View:
        steps = self._end_of(layout.STEPS, lambda: read.last_steps(self.path, STEPS_READ))
        events = self._end_of(layout.EVENTS, lambda: read.last_events(self.path, EVENTS_READ))
        last = steps[-1] if steps else {}
        each, left = seconds_left(steps, now["steps"])
        lately = steps[-LATELY:]
        seconds = sum(step.get("worker_seconds") or step["seconds"] for step in lately)
        over = now["status"] in OVER
        return View(
            run=printable(now["run_id"]),
            status=printable(now["status"]),
            step=now["step"],
            steps=now["steps"],
            silent=now["age"] if now["silent"] else None,
            generation=last.get("generation"),
            loss=last.get("loss"),
            losses=[step["loss"] for step in steps if step.get("loss") is not None],
            tokens_per_second=sum(step["tokens"] for step in lately) / seconds if seconds > 0 else None,
            gpu={name: last[name] for name in layout.GPU_FIGURES if last.get(name) is not None},
            step_seconds=each,
            left=None if over else left,
            behind=None if over else now.get("behind"),
            behind_most=now.get("behind_most"),
            asked=now.get("asked"),
            seats=self._seats(now, events, last.get("generation"), over=over),
            spares=sorted(printable(worker["node"]) for worker in now["workers"] if worker["cell"] is None),
            events=told(events),
        )

    def _seats(
        self, now: Mapping[str, Any], events: Sequence[Mapping[str, Any]], trained: int | None, *, over: bool
    ) -> list[Seat]:
        """`trained`: the generation of the last step; a run that is stopped has one more, which only saves."""
        shape = self._shape(now, events)
        if over or not now["workers"]:
            generations = (read_json(self.path / layout.PLAN) or {}).get("generations") or [{"assignment": {}}]
            last = [one for one in generations if one.get("generation") == trained] or generations
            found = seats_at_the_end(last[-1]["assignment"], shape[1])
            if over or not found:
                return [_printable(seat) for seat in found]
        dead = {}
        for event in events:
            coords = event.get("coords")
            if event["kind"] == "death" and event.get("cell") is not None and isinstance(coords, Mapping):
                dead[event["cell"], coords.get("stage", 0), coords.get("shard", 0)] = event["node"]
        return [_printable(seat) for seat in seats_of(now, shape, dead)]

    def _shape(self, now: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
        """Cells, stages, and shards of each stage, that the run wants now."""
        generations = [event for event in events if event["kind"] == "generation"]
        if generations and (told := generations[-1].get("shape")):
            return told["cells"], told["pp"], told["fsdp"] * told["ep"]
        config = read.config(self.path)
        workers = int(config.get("workers_per_cell") or 1)
        coords = [worker["coords"] for worker in now["workers"] if isinstance(worker.get("coords"), Mapping)]
        if coords:
            stages = 1 + max(int(one.get("stage", 0)) for one in coords)
        else:
            section = config.get("workload")
            parallel = section.get("parallel") if isinstance(section, Mapping) else None
            stages = int(parallel.get("pp") or 1) if isinstance(parallel, Mapping) else 1
        return int(config.get("cells") or 0), stages, max(1, workers // stages)

    def _end_of(self, name: str, look: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """What a look at the end of a file finds; what it found before, if the file is the same."""
        try:
            found = os.stat(self.path / name)
        except FileNotFoundError:
            return []
        mark = (found.st_ino, found.st_size, found.st_mtime_ns)
        if self._read.get(name, (None, []))[0] != mark:
            self._read[name] = (mark, look())
        return self._read[name][1]


def _printable(seat: Seat) -> Seat:
    return Seat(seat.cell, seat.stage, seat.shard, printable(seat.node), seat.stand)
