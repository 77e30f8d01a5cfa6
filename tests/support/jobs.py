"""Jobs on a local cluster: written, submitted, watched, and compared with the same training in one process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from shoal import testing
from shoal.cluster import api, connect
from shoal.cluster.state import load
from shoal.record import read
from shoal.record.jsonl import read_json
from shoal.testing import Outcome

BIN = Path(sys.executable).parent
HURRY = "hurry"
WORKLOAD = {"path": "shoal_workloads.synthetic:Synthetic", "seconds": 0.4, "global_batch": 8, "parameters": 1024}
"""A step of two cells of two takes 0.8 s: a few hundred last for minutes, so that a run is still there for what a test
does to it, however slow the machine."""


def write_job(folder: Path, **settings: Any) -> Path:
    """Its steps take the time of `WORKLOAD` until `hurry` is called, if no other workload is told."""
    workload = WORKLOAD | {"hurry": str(folder / HURRY)}
    job = {"steps": 40, "storage": str(folder / "runs"), "workload": workload, "checkpoint": {"every": 10}}
    job["patience"] = 90.0  # nobody is frozen here, and a machine under load may stall for seconds
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job | settings))
    return file


def hurry(folder: Path) -> None:
    """What a test waited for has happened: the rest of the job written in `folder` takes no time."""
    (folder / HURRY).touch()


def submit(cluster: str, file: Path, *more: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`ray job submit OPTIONS -- shoal train FILE ...`"""
    env = {**os.environ, **connect.environment(cluster)}
    argv = [str(BIN / "ray"), "job", "submit", *options, "--", str(BIN / "shoal"), "train", str(file), *more]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def job_status(cluster: str, submission_id: str) -> str:
    """What Ray says of a submitted job; empty while it does not answer."""
    env = {**os.environ, **connect.environment(cluster)}
    argv = [str(BIN / "ray"), "job", "status", submission_id]
    said = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    words = ("PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")
    output = (said.stdout + said.stderr).upper()
    return next((word for word in words if f" {word}" in output), "") if said.returncode == 0 else ""


def train(cluster: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`shoal train` inside the cluster, as a plain driver."""
    argv = connect.command(cluster, [str(BIN / "shoal"), "train", *words])
    env = {**os.environ, **connect.environment(cluster)}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600)


def wait_for(path: Path, steps: int, spares: int = 0, recoveries: int = 0, deadline: float = 900.0) -> None:
    """Until `steps` are committed, `recoveries` done, both cells there, and `spares` warm workers beside them.

    Raises:
        AssertionError: that did not come, or cannot come any more.
    """
    end = time.monotonic() + deadline
    while True:
        lines = read.steps(path) if (path / "steps.jsonl").exists() else []
        status = read_json(path / "status.json") or {"workers": []}
        fresh = bool(lines) and status.get("generation") == lines[-1]["generation"]  # it is written once a second only
        warm = [worker for worker in status["workers"] if worker["cell"] is None and fresh]
        done = sum(event["kind"] == "recovery" for event in read.events(path)) if lines else 0
        if len(lines) >= steps and lines[-1]["cells"] == 2 and len(warm) >= spares and done == recoveries:
            return
        wanted = f"{steps} steps, {recoveries} recoveries and {spares} spares"
        there = f"{path}: {len(lines)} steps, {done} recoveries, {len(warm)} spares; {kinds_of_events(path)}"
        assert not (path / "run.json").exists(), f"wanted {wanted}, but the run ended. {there}"
        assert done <= recoveries, f"wanted {wanted}. {there}"
        assert time.monotonic() < end, f"wanted {wanted} within {deadline:g} s. {there}"
        time.sleep(0.05)


def kinds_of_events(path: Path) -> list[str]:
    return [event["kind"] for event in read.events(path)] if path.exists() else []


def actors(cluster: str) -> list[str]:
    """Living Ray actors of the cluster."""
    answer = api.get(load(cluster), "/api/v0/actors?limit=10000", timeout_s=300)
    assert answer["result"], answer["msg"]
    found = answer["data"]["result"]["result"]
    return [actor["name"] for actor in found if actor["state"] == "ALIVE" and actor["name"]]


def assert_reaped(cluster: str, run_id: str, deadline: float = 300.0) -> None:
    """Nothing of a run is left on the cluster; the controller goes last, some seconds after its run."""
    end = time.monotonic() + deadline
    while left := [name for name in actors(cluster) if name.startswith(f"{run_id}/")]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def alone(steps: int) -> Outcome:
    """The same training in this one process."""
    return testing.alone(WORKLOAD | {"seconds": 0.0}, steps)
