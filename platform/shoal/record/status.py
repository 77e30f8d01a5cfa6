"""How a run is doing now, from its directory alone: no connection to the cluster is needed, and none is made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.summary import summarize

__all__ = ["OVER", "SILENT", "snapshot"]

OVER = ("done", "failed", "stopped")
SILENT = 10.0  # seconds without a new snapshot (it comes every second) after which the controller is taken for silent


def snapshot(path: Path, now: float | None = None) -> dict[str, Any]:
    """The content of `status.json`, brought up to `now` (unix seconds): heartbeats have aged as long as the file.

    Adds `age` (seconds since the controller wrote, null if it never did), `silent` (it should have written since) and
    `steps` (how many are wanted, null if unknown). `run_id, status, step, workers` are always there.
    """
    path, now = Path(path), time.time() if now is None else now
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
        age = max(0.0, now - status["written"])
        workers = [worker | {"heartbeat_age": worker["heartbeat_age"] + age} for worker in status["workers"]]
        status = {"steps": None, **status, "workers": workers}
    silent = status["status"] not in OVER and (age is None or age > SILENT)
    return {**status, "age": age, "silent": silent}
