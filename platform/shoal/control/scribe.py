"""The controller's pen: what goes into the run's record, and in which words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from shoal.config import Job
from shoal.control.lifelines import Line
from shoal.decisions.actions import Generation
from shoal.decisions.modes import Ended, Gathering, Pausing, Running, Stopping
from shoal.decisions.shape import Shape
from shoal.decisions.state import State
from shoal.protocol.said import Committed
from shoal.record import layout, slow
from shoal.record.pen import Pen, Stall
from shoal.record.rundir import RunDir
from shoal.record.summary import summarize
from shoal_core.errors import UserError
from shoal_core.workload import ORIGIN, Workload

__all__ = ["Listener", "Scribe"]

FLUSH = 10.0
"""Seconds at the end of a run in which a record that is stalled may come to itself."""
STATUS = {Gathering: "starting", Running: "running", Pausing: "recovering", Stopping: "recovering", Ended: "done"}


class Listener(Protocol):
    """Takes the very lines of a run's record as they are told: for a monitoring system, for people. Raises nothing."""

    def step(self, record: Mapping[str, Any]) -> None:
        """Take a line of `steps.jsonl`."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Take a line of `events.jsonl`."""


class Scribe:
    """Has one run's record written, and its `listeners` told; nothing here waits for a disk. `guard`: see `RunDir`."""

    def __init__(
        self,
        job: Job,
        path: Path,
        workload: Workload,
        guard: Callable[[], None] = lambda: None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.job, self.workload = job, workload

        def before_writing() -> None:
            guard()
            slow.wait(path)

        self.run = RunDir(path, before_writing)
        self.pen = Pen(self.run)
        self.when: float | None = None
        self.figures: dict[str, Any] = {}
        self.listeners = listeners

    def started(self, start: int, about: Mapping[str, Any]) -> None:
        """A session begins: what the record holds of steps from `start` on was not saved, and is taken back."""
        self.pen.truncate(start)
        loaded = (self.job.workload.get(ORIGIN) or {}).get("start", start or None)  # 0: a model that was imported
        self.event(
            "run_started",
            run_id=self.job.run_id,
            steps=self.job.steps,
            cells=self.job.cells,
            workers_per_cell=self.job.workers_per_cell,
            resumed_from=loaded,
            **about,
        )
        self.gap(start)

    def gap(self, step: int) -> None:
        """Tell of steps before `step` that are committed and not on record."""
        if step > self.pen.last_step + 1:
            self.event("record_gap", steps=[self.pen.last_step + 1, step])
            self.pen.last_step = step - 1

    def event(self, kind: str, **fields: Any) -> None:
        """A line of the journal."""
        self._told(self.pen.event(kind, **fields))

    def _told(self, line: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.event(line)

    def step(self, message: Committed, generation: int) -> float:
        """A committed step, from the first worker that told of it. Returns the seconds it took.

        Raises:
            ValueError: the workload's figures make no record.
        """
        step, now = message.steps - 1, time.time()
        first, last = self.workload.samples(step)
        seconds = message.seconds if self.when is None else now - self.when
        self.when = now
        times = {"seconds": seconds, "worker_seconds": message.seconds}
        figures = {"cells": message.cells, "generation": generation, **times}
        late = {"stats": message.stats, "norm_sq": message.norm_sq}  # what a laggard needs to commit it too
        own = {"step": step, "time": now, "samples": [first, last], **figures, **late}
        record = {**message.metrics, **own}  # whatever a workload calls its figures
        self.gap(step)
        entry = self.pen.step(record, self.shares(message, step, first))
        self.figures = {"loss": entry["loss"], "tokens_per_second": entry["tokens"] / max(message.seconds, 1e-9)}
        self.figures |= {name: entry[name] for name in layout.GPU_FIGURES if name in entry}
        for listener in self.listeners:
            listener.step(entry)
        return message.seconds

    @staticmethod
    def shares(message: Committed, step: int, first: int) -> list[dict[str, Any]]:
        """Who took which samples, if that is to be audited: lines of `samples.jsonl`."""
        taken: dict[str, list[int]] = {}
        for place, who in enumerate(message.takers):
            taken.setdefault(message.crew[who], []).append(first + place)
        cells = dict(zip(message.crew, message.cell_of, strict=True))
        return [{"step": step, "cell": cells[who], "worker": who, "ids": ids} for who, ids in taken.items()]

    def generation(self, action: Generation, shape: Shape) -> None:
        """Who holds what from now on, in cells of which shape."""
        crews = {str(cell): crew for cell, crew in action.cells.items()}
        attempts = {str(cell): attempt for cell, attempt in action.attempts.items()}
        self._told(self.pen.generation(action.generation, action.steps, crews, attempts, shape.told()))
        if self.when is None:
            self.when = time.time()

    def rewound(self, steps: int) -> None:
        self.pen.truncate(steps)

    def status(
        self,
        state: State,
        lines: Mapping[str, Line],
        stall: Stall | None,
        lifeline: tuple[str, int],
        behind: tuple[float | None, float | None] = (None, None),
        asked: tuple[int, float] | None = None,
    ) -> None:
        """The live picture that `shoal status` shows. `lifeline`: where workers find the controller; `behind`: seconds
        by which the record on its store is old, if it lies on one, and by which it was at most; `asked`: slots that the
        cluster's autoscaler is asked for, and since when."""
        now, here, seats, mesh = time.monotonic(), list(lines.values()), state.seats, state.shape.mesh

        def workers() -> Iterator[dict[str, Any]]:  # in the pen's thread: there may be thousands
            for line in here:
                seat = seats.get(line.worker)
                yield {
                    "actor": line.worker,
                    "pid": line.pid,
                    "node": line.node,
                    "cell": None if seat is None else seat.cell,
                    "coords": None if seat is None else mesh.named(seat.rank),
                    "step": line.steps,
                    "phase": line.phase,
                    "heartbeat_age": round(now - line.heard, 3),
                }

        self.pen.status(
            {
                "run_id": self.job.run_id,
                "status": STATUS[type(state.mode)],
                "step": state.committed,
                "steps": self.job.steps,
                "cells": len(state.live),
                "generation": state.generation,
                "controller": {"pid": os.getpid(), "lifeline": lifeline},
                "record": None if stall is None else {"stalled": stall.reason, "lines": stall.lines},
                "behind": behind[0],
                "behind_most": behind[1],
                "asked": asked and asked[0],
                "asked_since": asked and asked[1],
                "nodes": {line.node: line.machine for line in here if line.machine},
                **self.figures,
            },
            workers,
        )

    def ended(self, status: str, reason: str, committed: int, *, by_controller: bool = False) -> str:
        """Close the record; `run.json` comes last but for the report. Returns what could not be written, "" if all
        was."""
        self.event("run_ended", status=status, reason=reason, by_controller=by_controller)
        final: dict[str, Any] = {
            "run_id": self.job.run_id,
            "status": status,
            "step": committed,
            "steps": self.job.steps,
        }
        self.pen.status(final | self.figures)
        left = self.pen.close(FLUSH)
        stall = self.pen.stall()
        problem = f"{left} lines of the record could not be written ({stall.reason})" if left and stall else ""
        try:
            self.run.write_run(summarize(self.run.path) | {"status": status, "reason": reason})
        except (OSError, UserError) as error:
            problem = f"{problem}; {layout.RUN} was not written ({error})".removeprefix("; ")
        return problem
