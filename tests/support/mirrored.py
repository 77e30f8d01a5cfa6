"""Records of runs for the MLflow mirror to send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.record.rundir import RunDir

__all__ = ["CONFIG", "a_recovery", "a_run", "a_step"]

CONFIG: dict[str, Any] = {
    "run_id": "job",
    "steps": 40,
    "mlflow": {"uri": "http://me:hunter2@host:5000", "api_key": "hunter3"},
    "workload": {"path": "a:B", "lr": 1e-3},
}


def a_step(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "loss": 3.0 / (step + 1), "lm_loss": 2.0, "mtp_loss": 2.1, "grad_norm": 1.0, "lr": 1e-3,
        "tokens": 64, "samples": [step * 4, step * 4 + 4], "cells": 2, "generation": 0, "seconds": 0.1, **more,
    }  # fmt: skip


def a_run(storage: Path, steps: int, config: dict[str, Any] = CONFIG, resume: bool = False) -> RunDir:
    run = RunDir.create(storage, "job", config, resume)
    run.append_event("run_started", run_id="job", steps=40, cells=2, workers_per_cell=2)
    for step in range(run.last_step + 1, steps):
        run.append_step(a_step(step))
    return run


def a_recovery(run: RunDir) -> None:
    run.append_event(
        "recovery", rung="heal", cell=1, nodes=["node3"], actors=["job/cell1/stage0/shard0@node3"], next_commit=0.31,
        full_strength=0.62, steps_lost=0, phases={"detect": 0.08, "join": 0.1},
        sentence="Node node3 died; nothing was lost.",
    )  # fmt: skip
