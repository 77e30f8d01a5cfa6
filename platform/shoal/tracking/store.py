"""One MLflow run for one record: found or made, and written to so that a repeated write changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from shoal.printable import printable
from shoal_core.errors import UserError

__all__ = ["RunStore", "fit_name"]

METRICS_PER_CALL = 1000  # limits of the MLflow server
PAIRS_PER_CALL = 100
VALUE_LENGTH = 6000
NAME_LENGTH = 240

RUN_ID = "shoal.run_id"
RECORD = "shoal.record"
LOGGED = "shoal.logged"


def fit_name(name: str) -> str:
    """The name of a parameter, metric or tag as MLflow takes it: it knows few characters, and reads some as paths."""
    fit = re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:NAME_LENGTH]
    return fit if fit.strip(". ") else "_" + fit.replace(".", "_")


def fit_value(value: Any) -> str:
    return printable(value, lines=True)[:VALUE_LENGTH]


class RunStore:
    """The MLflow run that carries the tag `shoal.record`.

    `step` and `events` say how much of the record it holds: the number of the last step, and how many lines of the
    journal, `at`: a byte of the journal and the lines before it, all of which it holds. They are a tag of the MLflow
    run itself, written after the metrics they speak of, so that no history is ever asked for.
    """

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client = client
        self._params: dict[str, str] = dict(run.data.params)
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.tags: dict[str, str] = dict(run.data.tags)
        logged = json.loads(self.tags.get(LOGGED, '{"step": -1, "events": 0}'))
        self.step: int = logged["step"]
        self.events: int = logged["events"]
        start, lines = logged.get("at", (0, 0))
        self.at: tuple[int, int] = (start, lines)

    @classmethod
    def open(
        cls, uri: str, experiment: str, artifacts: str | None, run_id: str, record: str, known: str | None
    ) -> RunStore:
        """Find the run of `record`, or make it.

        Args:
            artifacts: URI where a database without a server keeps files; an experiment that is there keeps its own.
            record: names one record of one run; the same run id in another storage folder is another record.
            known: the MLflow run that was used before, if one was.

        Raises:
            UserError: the experiment was deleted there.
            MlflowException: the store does not answer, or refuses.
        """
        client = MlflowClient(tracking_uri=uri)
        run = _known_run(client, known, record) if known else None
        if run is None:
            there = client.get_experiment_by_name(experiment)
            if there is not None and there.lifecycle_stage != "active":
                remedy = "restore it there, or set another mlflow.experiment"
                raise UserError(f"the MLflow experiment {experiment!r} was deleted", remedy)
            experiment_id = there.experiment_id if there else client.create_experiment(experiment, artifacts)
            found = client.search_runs([experiment_id], f"tags.`{RECORD}` = '{record}'", max_results=1)
            run = found[0] if found else None
        if run is not None:
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {RUN_ID: run_id, RECORD: record, "mlflow.source.name": "shoal"}
            run = client.create_run(experiment_id, run_name=run_id, tags=tags)
        return cls(client, run)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the config. MLflow does not let a parameter change: a resumed run's new values become tags."""
        values = {fit_name(key): fit_value(value) for key, value in params.items()}
        new = [Param(key, value) for key, value in values.items() if key not in self._params]
        changed = [
            RunTag(f"changed.{key}"[:NAME_LENGTH], value)
            for key, value in values.items()
            if self._params.get(key, value) != value
        ]
        for part in _parts(new, PAIRS_PER_CALL):
            self._client.log_batch(self.run_id, params=part)
        for part in _parts(changed, PAIRS_PER_CALL):
            self._client.log_batch(self.run_id, tags=part)
        self._params.update({param.key: param.value for param in new})

    def log(
        self, metrics: Sequence[Metric], step: int, events: int, at: tuple[int, int], tags: Mapping[str, Any]
    ) -> None:
        """Log what the record says up to `step` and line `events` of the journal; `tags` count with it.

        Metrics bear the record's own times, so a database takes a repetition after a crash in mid-call for the same."""
        for part in _parts(metrics, METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=part)
        told = json.dumps({"step": step, "events": events, "at": at})
        for part in _parts([*_run_tags(tags), RunTag(LOGGED, told)], PAIRS_PER_CALL):
            self._client.log_batch(self.run_id, tags=part)
        self.step, self.events, self.at = step, events, at

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Log metrics that belong to no line of the record."""
        for part in _parts(metrics, METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=part)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set or replace tags."""
        for part in _parts(_run_tags(tags), PAIRS_PER_CALL):
            self._client.log_batch(self.run_id, tags=part)

    def gone(self) -> bool:
        """Whether the run was deleted in MLflow.

        Raises:
            MlflowException: the store does not answer, or refuses.
        """
        try:
            return bool(self._client.get_run(self.run_id).info.lifecycle_stage != "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return True
            raise

    def log_file(self, path: Path) -> None:
        """Keep a copy of a file as an artifact, replacing an older copy."""
        self._client.log_artifact(self.run_id, str(path))

    def end(self, status: str, time: float) -> None:
        """Mark the run FINISHED, FAILED or KILLED at `time` (unix seconds)."""
        self._client.set_terminated(self.run_id, status, int(time * 1000))


def _known_run(client: MlflowClient, run_id: str, record: str) -> Run | None:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another server than before, or the run was deleted
            return None
        raise
    return run if run.info.lifecycle_stage == "active" and run.data.tags.get(RECORD) == record else None


def _run_tags(tags: Mapping[str, Any]) -> list[RunTag]:
    return [RunTag(fit_name(key), fit_value(value)) for key, value in tags.items()]


def _parts(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield list(items[first : first + size])
