"""How a run ended, as Ray Train says it: a `ray.train.Result`, or one of its errors."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result

from shoal.names import is_worker
from shoal.record import layout, read
from shoal.record.place import from_root, local_record
from shoal.storage import arrow_filesystem
from shoal.train.launch import Ended
from shoal_core.errors import UserError

__all__ = ["RunStopped", "failure", "read_result", "result_of"]

ENDS = ("run_started", "run_ended")
"""Events of which the last says whether a run has ended."""


class RunStopped(TrainingFailedError):
    """The run was ended in order, by `shoal stop` or another driver's signal: it can go on from its last checkpoint."""


def result_of(ended: Ended) -> Result:
    """The result of a run that is done.

    Raises:
        KeyboardInterrupt, SystemExit: it is not, since this process was told to end.
        TrainingFailedError: it is not.
    """
    if ended.status == "done":
        return read_result(ended.job.place)
    if ended.signal == signal.SIGINT:
        raise KeyboardInterrupt(ended.reason)
    if ended.signal is not None:
        raise SystemExit(128 + ended.signal)
    raise failure(ended.status, ended.reason, local_record(ended.job.place))


def read_result(path: str) -> Result:
    """The result of the run at an address, as far as it is: as `ray.train.Result.from_path`, with every step's figures
    and not only those of the checkpoints, and with its error.

    Raises:
        UserError: there is none, or its record is damaged.
    """
    place = from_root(path)
    record = local_record(place)
    if not (record / layout.EVENTS).exists():
        raise UserError(f"{path}: there is no run", "name storage_path/name of one")
    rows = figures(record)
    files, where = arrow_filesystem(place)
    ended = next((event for event in reversed(read.events(record)) if event["kind"] in ENDS), None)
    status = ended["status"] if ended is not None and ended["kind"] == "run_ended" else None
    return replace(
        Result.from_path(where, storage_filesystem=files),
        metrics=rows[-1] if rows else None,
        metrics_dataframe=pd.DataFrame(rows) if rows else None,
        error=None if ended is None or status in (None, "done") else failure(status, ended["reason"], record),
    )


def figures(record: Path) -> list[dict[str, Any]]:
    """What is known of every committed step, as in `steps.jsonl`, with the held-out figures where it was evaluated."""
    held_out = {
        event["step"] - 1: {key: value for key, value in event.items() if key not in ("time", "kind", "step")}
        for event in read.events(record)
        if event["kind"] == "evaluation"
    }
    return [
        {key: value for key, value in line.items() if key not in layout.INNER} | held_out.get(line["step"], {})
        for line in read.steps(record)
    ]


def failure(status: str, reason: str, record: Path) -> TrainingFailedError:
    """What a run that is not done raises. A worker's own errors are told by its rank: its cell's workers in order, and
    the cells one after the other."""
    if status == "stopped":
        return RunStopped(reason)
    errors = [event for event in read.events(record) if event["kind"] == "error" and is_worker(str(event["actor"]))]
    if status == "left" or (not errors and "controller" in reason.partition(":")[0]):
        return ControllerError(RuntimeError(reason))
    plans = read.plan(record)
    cells = plans[-1]["assignment"] if plans else {}
    ranks = [worker for _, crew in sorted(cells.items(), key=lambda one: int(one[0])) for worker in crew]
    known = {worker: rank for rank, worker in enumerate(ranks)}
    told: dict[int, Exception] = {}
    for place, event in enumerate(errors):
        told[known.get(event["actor"], len(ranks) + place)] = RuntimeError(event["trace"])
    return WorkerGroupError(reason, told)
