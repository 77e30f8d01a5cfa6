"""What a record becomes in MLflow: steps and recoveries are metrics, the config is parameters, files are artifacts."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from shoal.record import layout, read
from shoal.record.jsonl import dumps, read_json
from shoal.record.masking import flat_masked, mask_text
from shoal.record.sentences import sentence
from shoal.record.tails import After, Tail
from shoal.tracking.place import artifacts_of
from shoal.tracking.store import RunStore, fit_name
from shoal_core.files import replace_file

__all__ = ["Mirror"]

logger = logging.getLogger(__name__)
NOT_METRICS = {"step", "time", "samples"}
STATUS = {"done": "FINISHED", "stopped": "KILLED"}
STEPS_PER_CALL = 50
LAST = 4096
"""Bytes of the journal that are looked at for its last line."""
NODES_EVERY, NODES_A_SECOND = 10.0, 20.0
"""Seconds between two looks at how busy nodes are, and nodes in a second at most."""
SYSTEM = "system"
"""MLflow shows what is called so as system metrics."""
RECOVERIES, LOST = "shoal.recoveries", "shoal.steps_lost"


class Mirror:
    """Reads one record and keeps one MLflow run equal to it. `sync` may fail at any point and be called again. What the
    MLflow run has of the record is not read again, nor asked for: to begin in the middle costs what to begin costs."""

    def __init__(self, path: Path, uri: str, experiment: str) -> None:
        self.path = path
        self._uri = uri
        self._artifacts = None if uri.startswith(("http", "databricks")) else artifacts_of(path)
        self._experiment = experiment
        self.progress = time.monotonic()
        """When the store last took something."""
        self._begin()

    def _begin(self) -> None:
        """Nothing of the record is read yet."""
        self._steps: After | None = None
        self._journal: Tail | None = None
        self._lines: list[tuple[str, dict[str, Any]]] = []  # read, not known to be logged
        self._step = -1
        self._events = 0
        self._recoveries = self._lost = 0
        self._store: RunStore | None = None
        self._described = True
        self._nodes_due = 0.0
        self._system: list[Metric] = []
        self.ended: dict[str, Any] | None = None

    def sync(self) -> None:
        """Bring MLflow up to what is on the file now. A run that was deleted there is begun anew.

        Raises:
            UserError: the record is damaged.
            Exception: the store's own, of many kinds; nothing is lost by it.
        """
        try:
            self._send()
        except MlflowException:
            if self._store is None or not self._store.gone():
                raise
            self._begin()
            self._send()

    def _send(self) -> None:
        last = read.last_events(self.path, LAST)[-1:]
        if not last:
            return
        self.ended = last[0] if last[0]["kind"] == "run_ended" else None
        store = self._store or self._open()
        if not self._lines:
            self._read(store)
        while self._lines:
            count, metrics, step, events, tags = self._batch(store)
            if step > store.step or events > store.events:
                at = store.at if count < len(self._lines) or self._journal is None else self._journal.position
                store.log(metrics, max(step, store.step), max(events, store.events), at, tags)
                self.progress = time.monotonic()
            self._step, self._events = step, events
            self._recoveries, self._lost = _counts(tags, self._recoveries, self._lost)
            del self._lines[:count]
        self._look_at_nodes(store)
        if not self._described:
            store.log_file(self.path / layout.EVENTS)
            self._described = True

    def _read(self, store: RunStore) -> None:
        if self._steps is None or self._journal is None:
            self._steps, self._journal = read.steps_after(self.path, store.step), read.tail_events(self.path, store.at)
            self._step = store.step
            self._recoveries, self._lost = _counts(store.tags, 0, 0)
            events = self._journal.read()
            self._events = self._journal.position[1] - len(events)
        else:
            events = self._journal.read()
        found = [[("step", line) for line in self._steps.read()], [("event", line) for line in events]]
        # By time, but never changing the order within a file: what is logged is told by counting its lines.
        self._lines = list(heapq.merge(*found, key=lambda pair: pair[1]["time"]))

    def _look_at_nodes(self, store: RunStore) -> None:
        """Log figures of every node as system metrics, now and then: what `status.json` says of now."""
        status = read_json(self.path / layout.STATUS) if self.ended is None else None
        nodes = (status or {}).get("nodes")
        if status is None or not isinstance(nodes, Mapping):
            return
        written = float(status["written"])
        if written >= self._nodes_due:
            self._nodes_due = written + max(NODES_EVERY, len(nodes) / NODES_A_SECOND)
            for node, figures in nodes.items():
                told = {f"{SYSTEM}/{fit_name(node)}/{fit_name(name)}": figures[name] for name in figures}
                self._system.extend(_metrics(told, written, self._step + 1, fit=str))
        store.log_metrics(self._system)
        self._system.clear()

    def _open(self) -> RunStore:
        first = read.first_event(self.path)
        assert first is not None  # there is a last one
        record = f"{fit_name(self.path.name)}@{first['time']:.6f}"
        known = (read_json(self.path / layout.MLFLOW) or {}).get("mlflow_run_id")
        store = RunStore.open(self._uri, self._experiment, self._artifacts, self.path.name, record, known)
        if known is not None and known != store.run_id:
            told = "the MLflow run %s is not there any more: %s has the whole record from now on"
            logger.warning(told, known, store.run_id)
        store.log_params(flat_masked(read.config(self.path)))
        self._store, self.progress = store, time.monotonic()
        self._tell(store, complete=False)
        return store

    def _tell(self, store: RunStore, *, complete: bool) -> None:
        about = {
            "mlflow_run_id": store.run_id,
            "experiment_id": store.experiment_id,
            "experiment": self._experiment,
            "uri": mask_text(self._uri),
            "complete": complete,
        }
        replace_file(self.path / layout.MLFLOW, dumps(about, indent=1) + "\n")

    def _batch(self, store: RunStore) -> tuple[int, list[Metric], int, int, dict[str, Any]]:
        """The next lines: how many, their metrics not yet logged, where the record stands after them, and the tags that
        they change."""
        metrics: list[Metric] = []
        step, events, count = self._step, self._events, 0
        recoveries, lost = self._recoveries, self._lost
        tags: dict[str, Any] = {}
        for kind, line in self._lines[:STEPS_PER_CALL]:
            count += 1
            if kind == "step":
                step = line["step"]
                if step > store.step:
                    metrics.extend(_step_metrics(line))
            else:
                events += 1
                if events <= store.events:
                    continue
                metrics.extend(_event_metrics(line, step + 1))
                if line["kind"] == "recovery":
                    recoveries += 1
                    tags[f"shoal.recovery.{recoveries}"] = sentence(line)
                elif line["kind"] == "rewound":
                    lost += line.get("lost") or 0
                else:
                    continue
                tags |= {RECOVERIES: recoveries, LOST: lost}
                self._described = False
        return count, metrics, step, events, tags

    def close(self) -> None:
        """Log the files of the end and mark the MLflow run as ended. Everything else must be synced."""
        if self._store is None:
            return
        for name in (layout.EVENTS, layout.PLAN, layout.RUN, layout.REPORT):
            if (self.path / name).exists():
                self._store.log_file(self.path / name)
        ended = self.ended or {"status": "stopped", "time": time.time()}
        self._store.log_metrics(_predicted(read_json(self.path / layout.RUN) or {}, ended["time"]))
        self._store.set_tags({"shoal.status": ended.get("status")})
        self._store.end(STATUS.get(str(ended.get("status")), "FAILED"), ended["time"])
        self._tell(self._store, complete=True)


def _counts(tags: Mapping[str, Any], recoveries: int, lost: int) -> tuple[int, int]:
    """Recoveries and steps lost by an MLflow run's tags; as given where they do not say."""
    return int(tags.get(RECOVERIES, recoveries)), int(tags.get(LOST, lost))


def _predicted(run: Mapping[str, Any], at: float) -> list[Metric]:
    """What was `predicted` of a run, if `run.json` has such a section, and beside each figure what it came to, if that
    has the same name there."""
    section = run.get("predicted")
    if not isinstance(section, Mapping):
        return []
    gpu = run.get("gpu")
    came = {**run, **gpu} if isinstance(gpu, Mapping) else run
    if isinstance(actual := run.get("actual"), Mapping):
        came = {**came, **actual}
    predicted = {f"predicted.{key}": value for key, value in section.items()}
    beside = {f"actual.{key}": came[key] for key in section if key in came}
    return _metrics(predicted | beside, at, int(run.get("steps") or 0))


def _step_metrics(line: Mapping[str, Any]) -> list[Metric]:
    """A step counts from 1, as it does for people: its figures stand at how many are committed with it."""
    figures = {key: value for key, value in line.items() if key not in NOT_METRICS}
    return _metrics(figures, line["time"], line["step"] + 1)


def _event_metrics(event: Mapping[str, Any], step: int) -> list[Metric]:
    """Metrics of one event; `step`: how many were committed when it happened."""
    kind, at = event["kind"], event["step"] if isinstance(event.get("step"), int) else step
    if kind == "evaluation":
        return _metrics({key: value for key, value in event.items() if key not in NOT_METRICS}, event["time"], at)
    if kind == "checkpoint":
        figures = {f"checkpoint.{key}": event.get(key) for key in ("seconds", "bytes")}
        return _metrics(figures, event["time"], at)
    if kind == "recovery":
        figures = {f"recovery.{key}": event.get(key) for key in ("next_commit", "full_strength", "steps_lost")}
        phases = event["phases"] if isinstance(event.get("phases"), Mapping) else {}
        return _metrics({**figures, **{f"recovery.phase.{key}": phases[key] for key in phases}}, event["time"], step)
    return []


def _metrics(figures: Mapping[str, Any], at: float, step: int, fit: Callable[[str], str] = fit_name) -> list[Metric]:
    return [
        Metric(fit(key), float(value), int(at * 1000), step)
        for key, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < read.LARGEST
    ]
