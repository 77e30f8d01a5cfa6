"""What a record becomes in MLflow: steps and recoveries are metrics, the config is parameters, files are artifacts."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric

from shoal.record import layout, read
from shoal.record.jsonl import Tail, dumps, read_json, write_atomic
from shoal.record.masking import flat_masked, mask_text
from shoal.record.sentences import sentence
from shoal.tracking.store import RunStore

__all__ = ["Mirror"]

NOT_METRICS = {"step", "time", "samples"}
STATUS = {"done": "FINISHED", "stopped": "KILLED"}
STEPS_PER_CALL = 50


class Mirror:
    """Reads one record and keeps one MLflow run equal to it. `sync` may fail at any point and be called again."""

    def __init__(self, path: Path, uri: str, experiment: str) -> None:
        self.path = path
        self._uri = uri
        self._artifacts = None if uri.startswith(("http", "databricks")) else path.resolve().parent / "mlartifacts"
        self._experiment = experiment
        self._tails = {"step": Tail(path / layout.STEPS), "event": Tail(path / layout.EVENTS)}
        self._lines: list[tuple[str, dict[str, Any]]] = []  # read, not known to be logged
        self._step = -1
        self._events = 0
        self._recoveries: list[dict[str, Any]] = []
        self._store: RunStore | None = None
        self._record: str | None = None
        self._described = True
        self.ended: dict[str, Any] | None = None

    def sync(self) -> None:
        """Bring MLflow up to what is on the file now.

        Raises:
            Exception: the store's own, of many kinds; nothing is lost by it.
        """
        if not self._lines:
            self._read()
        if self._record is None:
            return
        store = self._store or self._open()
        while self._lines:
            count, metrics, step, events = self._batch()
            if step > store.step or events > store.events:
                store.log(metrics, max(step, store.step), max(events, store.events))
            self._step, self._events = step, events
            del self._lines[:count]
        if not self._described:
            self._describe(store)

    def _read(self) -> None:
        found = [[(kind, line) for line in tail.read()] for kind, tail in self._tails.items()]
        # By time, but never changing the order within a file: what is logged is told by counting its lines.
        self._lines = list(heapq.merge(*found, key=lambda pair: pair[1]["time"]))
        for event in (line for kind, line in self._lines if kind == "event"):
            self._record = self._record or f"{self.path.name}@{event['time']:.6f}"
            if event["kind"] == "recovery":
                self._recoveries.append(event)
                self._described = False
            elif event["kind"] in ("run_started", "run_ended"):
                self.ended = event if event["kind"] == "run_ended" else None

    def _open(self) -> RunStore:
        assert self._record is not None
        known = (read_json(self.path / layout.MLFLOW) or {}).get("mlflow_run_id")
        store = RunStore.open(self._uri, self._experiment, self._artifacts, self.path.name, self._record, known)
        store.log_params(flat_masked(read.config(self.path)))
        about = {
            "mlflow_run_id": store.run_id,
            "experiment_id": store.experiment_id,
            "experiment": self._experiment,
            "uri": mask_text(self._uri),
        }
        write_atomic(self.path / layout.MLFLOW, dumps(about, indent=1) + "\n")
        self._store = store
        return store

    def _batch(self) -> tuple[int, list[Metric], int, int]:
        """The next lines: how many, their metrics not yet logged, and where the record stands after them."""
        assert self._store is not None
        metrics: list[Metric] = []
        step, events, count = self._step, self._events, 0
        for kind, line in self._lines[:STEPS_PER_CALL]:
            count += 1
            if kind == "step":
                step = line["step"]
                if step > self._store.step:
                    metrics.extend(_step_metrics(line))
            else:
                events += 1
                if events > self._store.events:
                    metrics.extend(_event_metrics(line, max(step, 0)))
        return count, metrics, step, events

    def _describe(self, store: RunStore) -> None:
        told = {f"shoal.recovery.{index}": sentence(event) for index, event in enumerate(self._recoveries, start=1)}
        lost = sum(event.get("steps_lost") or 0 for event in self._recoveries)
        store.set_tags({"shoal.recoveries": len(self._recoveries), "shoal.steps_lost": lost, **told})
        store.log_file(self.path / layout.EVENTS)
        self._described = True

    def close(self) -> None:
        """Log the files of the end and mark the MLflow run as ended. Everything else must be synced."""
        if self._store is None:
            return
        for name in (layout.EVENTS, layout.PLAN, layout.RUN, layout.REPORT):
            if (self.path / name).exists():
                self._store.log_file(self.path / name)
        ended = self.ended or {"status": "stopped", "time": time.time()}
        self._store.set_tags({"shoal.status": ended["status"]})
        self._store.end(STATUS.get(str(ended["status"]), "FAILED"), ended["time"])


def _step_metrics(line: Mapping[str, Any]) -> list[Metric]:
    return _metrics({key: value for key, value in line.items() if key not in NOT_METRICS}, line["time"], line["step"])


def _event_metrics(event: Mapping[str, Any], step: int) -> list[Metric]:
    """Metrics of one event; `step` is the last committed one when it happened."""
    kind = event["kind"]
    if kind == "evaluation":
        figures = {key: value for key, value in event.items() if key not in NOT_METRICS}
        return _metrics(figures, event["time"], event["step"])
    if kind == "checkpoint":
        figures = {f"checkpoint.{key}": event.get(key) for key in ("seconds", "bytes")}
        return _metrics(figures, event["time"], event["step"])
    if kind == "recovery":
        figures = {f"recovery.{key}": event.get(key) for key in ("next_commit", "full_strength", "steps_lost")}
        phases = {f"recovery.phase.{key}": value for key, value in (event.get("phases") or {}).items()}
        return _metrics({**figures, **phases}, event["time"], step)
    return []


def _metrics(figures: Mapping[str, Any], at: float, step: int) -> list[Metric]:
    return [
        Metric(key, float(value), int(at * 1000), step)
        for key, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
