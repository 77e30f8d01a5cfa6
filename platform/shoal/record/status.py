"""How a run is doing now, from its directory alone: no connection to the cluster is needed, and none is made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.record import layout, read
from shoal.record.jsonl import json_object, read_json
from shoal.record.summary import summarize
from shoal_core.errors import UserError

__all__ = ["OVER", "SILENT", "aged", "snapshot", "unheard"]

OVER = ("done", "failed", "stopped")
FIELDS: dict[str, Any] = {"run_id": str, "status": str, "step": int, "written": int | float, "workers": list}
FIGURES: dict[str, Any] = {"steps": int, "cells": int, "generation": int, "loss": int | float,
                           "tokens_per_second": int | float, "behind": int | float,
                           "behind_most": int | float, "asked": int, "asked_since": int | float}  # fmt: skip
WORKER: dict[str, Any] = {"actor": str, "node": str, "heartbeat_age": int | float, "cell": int | None,
                          "step": int | None}  # fmt: skip
REMEDY = "remove it: the rest of the record tells the run"
SILENT = 10.0  # seconds without a new snapshot (it comes every second) after which the controller is taken for silent
UNHEARD = 5.0  # seconds without a sign of life after which a worker is shown as silent


def snapshot(path: Path, now: float | None = None) -> dict[str, Any]:
    """The content of `status.json`, brought up to `now` (unix seconds): heartbeats have aged as long as the file.

    Adds `age` (seconds since the controller wrote, null if it never did), `silent` (it should have written since) and
    `steps` (how many are wanted, null if unknown). `run_id, status, step, workers` are always there.

    Raises:
        UserError: the record is damaged.
    """
    path, now = Path(path), time.time() if now is None else now
    with read.readable(path):
        return _snapshot(path, now)


def _snapshot(path: Path, now: float) -> dict[str, Any]:
    status = read_json(path / layout.STATUS)
    if status is None:
        figures = summarize(path)
        begun = [event for event in read.events(path) if event["kind"] == "run_started"]
        status = {
            "run_id": figures["run_id"],
            "status": figures["status"] if begun else "starting",
            "step": figures["steps"],
            "steps": begun[-1]["steps"] if begun else None,
            "workers": [],
        }
        age = None
    else:
        status, age = _aged(status, str(path / layout.STATUS), now)
    silent = status["status"] not in OVER and (age is None or age > SILENT)
    return {**status, "age": age, "silent": silent}


def aged(content: bytes, where: str, now: float | None = None) -> dict[str, Any]:
    """As `snapshot`, of a `status.json` that was read. where: its address, for errors.

    Raises:
        UserError: it is damaged.
    """
    status, age = _aged(json_object(content, where), where, time.time() if now is None else now)
    return {**status, "age": age, "silent": status["status"] not in OVER and age > SILENT}


def unheard(now: Mapping[str, Any]) -> dict[str, float]:
    """Workers of which nothing was heard for long, and for how many seconds, by actor. now: as `snapshot` has it. The
    time for which the controller wrote nothing counts against none of them."""
    ages = {one["actor"]: one["heartbeat_age"] - (now["age"] or 0.0) for one in now["workers"]}
    return {actor: age for actor, age in ages.items() if age > UNHEARD}


def _aged(status: dict[str, Any], where: str, now: float) -> tuple[dict[str, Any], float]:
    """A picture as it is `now`, and its age."""
    if problem := _wrong(status):
        raise UserError(f"{where}: {problem}", REMEDY)
    age = max(0.0, now - status["written"])
    workers = [worker | {"heartbeat_age": worker["heartbeat_age"] + age} for worker in status["workers"]]
    return {"steps": None, **status, "workers": workers}, age


def _wrong(status: dict[str, Any]) -> str | None:
    """What of a `status.json` is not as docs/record.md says."""
    for field, kinds in FIELDS.items():
        if not isinstance(status.get(field), kinds) or isinstance(status[field], bool):
            return f"it has no {field!r} as it should be"
    for field, kinds in FIGURES.items():
        if not isinstance(status.get(field), kinds | None):
            return f"its {field!r} is no number"
    for worker in status["workers"]:
        if not isinstance(worker, dict) or any(not isinstance(worker.get(f), kind) for f, kind in WORKER.items()):
            return "it does not tell of each worker what it should"
    return None
