"""The controller's pen: what goes into the run's record, and in which words."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.config import Job
from shoal.control.lifelines import Line
from shoal.control.messages import Generation
from shoal.control.state import State
from shoal.metrics import RunMetrics
from shoal.record.rundir import RunDir
from shoal.record.summary import summarize
from shoal.workload import Workload

__all__ = ["Scribe"]

STATUS = {"gathering": "starting", "running": "running", "draining": "recovering", "ended": "done"}


class Scribe:
    """Writes one run's record. `start`: committed steps it begins with."""

    def __init__(self, job: Job, path: Path, workload: Workload, start: int) -> None:
        self.job, self.workload = job, workload
        self.run = RunDir(path)
        self.last = start
        self.when: float | None = None
        self.figures: dict[str, Any] = {}
        self.metrics = RunMetrics(str(job.run_id))

    def started(self, start: int, about: Mapping[str, Any]) -> None:
        if start:
            self.run.truncate_steps(start)
        self.event(
            "run_started",
            run_id=self.job.run_id,
            steps=self.job.steps,
            cells=self.job.cells,
            workers_per_cell=self.job.workers_per_cell,
            resumed_from=start or None,
            **about,
        )

    def event(self, kind: str, **fields: Any) -> None:
        self.metrics.event(self.run.append_event(kind, **fields))

    def step(self, message: Mapping[str, Any], generation: int) -> float:
        """A committed step, from the first worker that told of it. Returns the seconds it took."""
        step, now = message["steps"] - 1, time.time()
        first, last = self.workload.samples(step)
        if "takers" in message:
            taken: dict[str, list[int]] = {}
            for place, who in enumerate(message["takers"]):
                taken.setdefault(message["crew"][who], []).append(first + place)
            for worker, ids in taken.items():
                cell = message["cell_of"][message["crew"].index(worker)]
                self.run.append_samples({"step": step, "cell": cell, "worker": worker, "ids": ids})
        seconds = message["seconds"] if self.when is None else now - self.when
        self.when = now
        times = {"seconds": seconds, "worker_seconds": message["seconds"]}
        figures = {"cells": message["cells"], "generation": generation, **times}
        figures |= {key: message[key] for key in ("stats", "norm_sq")}  # what a laggard needs to commit it too
        record = {"step": step, "time": now, "samples": [first, last], **message["metrics"], **figures}
        self.run.append_step(record)
        self.metrics.step(record)
        tokens = float(message["metrics"]["tokens"])
        self.figures = {"loss": message["metrics"]["loss"], "tokens_per_second": tokens / max(seconds, 1e-9)}
        return float(message["seconds"])

    def generation(self, action: Generation) -> None:
        """Who holds what from now on."""
        crews = {str(cell): list(crew) for cell, crew in action.cells.items()}
        attempts = {str(cell): attempt for cell, attempt in action.attempts.items()}
        self.event("generation", generation=action.generation, step=action.steps, cells=crews, attempts=attempts)
        self.run.write_plan(action.generation, crews)
        if self.when is None:
            self.when = time.time()

    def rewound(self, steps: int) -> None:
        self.run.truncate_steps(steps)

    def status(self, state: State, lines: Mapping[str, Line]) -> None:
        """The live picture that `shoal status` shows."""
        now = time.monotonic()
        workers = []
        for line in lines.values():
            seat = state.seat(line.worker)
            workers.append(
                {
                    "actor": line.worker,
                    "pid": line.pid,
                    "node": line.node,
                    "cell": None if seat is None else seat.cell,
                    "coords": None if seat is None else state.shape.mesh.named(seat.rank),
                    "step": line.steps,
                    "phase": line.phase,
                    "heartbeat_age": round(now - line.heard, 3),
                }
            )
        self.run.write_status(
            {
                "run_id": self.job.run_id,
                "status": STATUS[state.mode],
                "step": state.committed,
                "steps": self.job.steps,
                "cells": len(state.live),
                "generation": state.generation,
                "controller": {"pid": os.getpid()},
                "workers": workers,
                **self.figures,
            }
        )

    def ended(self, status: str, reason: str, committed: int) -> None:
        """Close the record; `run.json` comes last but for the report."""
        self.event("run_ended", status=status, reason=reason)
        final: dict[str, Any] = {
            "run_id": self.job.run_id,
            "status": status,
            "step": committed,
            "steps": self.job.steps,
            "workers": [],
        }
        self.run.write_status(final | self.figures)
        self.run.write_run(summarize(self.run.path))
        self.run.close()
