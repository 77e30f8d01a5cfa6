"""Seconds from a kill to the next committed step, Shoal beside Ray Train, on one cluster of this machine in one run.

    python benchmarks/recovery.py [--kills 5] [--what node|worker] [--step 0.1] [--json FILE]

Both train with gloo on CPU in steps of the same length: Shoal 2 cells x 2 workers with warm spares, Ray Train 4 workers
restarting from a checkpoint every 5 steps. Before each kill the run is at full strength again, and a killed node is
replaced by a fresh one. Counted is the time from the first SIGKILL to the first step that is committed by a membership
formed after it (Shoal), or to the first step beyond where it stood (Ray Train).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from shoal.cluster import connect, local
from shoal.demo.run import Killed
from shoal.demo.summary import since_kill
from shoal.record import read
from shoal.record.jsonl import read_json

CLUSTER = "bench-recovery"
CELLS, WORKERS = 2, 2


def start(folder: Path, step: float) -> tuple[subprocess.Popen[bytes], Path]:
    """A Shoal run that goes on until it is told to stop."""
    # two micro-batches a step, one a cell: with one cell gone the other does both
    workload = {"path": "shoal_workloads.synthetic:Synthetic", "seconds": step, "global_batch": 8, "micro_batch": 2}
    job = {"run_id": "bench", "storage": str(folder), "steps": 10**6, "cells": CELLS, "workers_per_cell": WORKERS}
    off = {"mlflow": {"enabled": False}, "evaluation": {"enabled": False}, "checkpoint": {"every": 0}}
    (folder / "job.yaml").write_text(yaml.safe_dump({**job, **off, "workload": workload}))
    argv = [str(Path(sys.executable).with_name("shoal")), "train", str(folder / "job.yaml")]
    env = {**os.environ, **connect.environment(CLUSTER)}
    log = (folder / "driver.log").open("wb")
    return subprocess.Popen(connect.command(CLUSTER, argv), env=env, stdout=log, stderr=log), folder / "bench"


def wait_full(path: Path, steps: int, deadline: float = 180.0) -> tuple[dict[str, Any], dict[str, Any]]:
    """(status, last step) once all cells have committed `steps` more steps and a cell's worth of spares is warm."""
    end = time.monotonic() + deadline
    base: int | None = None
    while time.monotonic() < end:
        time.sleep(0.2)
        lines = read.steps(path) if (path / "steps.jsonl").exists() else []
        status = read_json(path / "status.json")
        if not lines or status is None:
            continue
        spares = [w for w in status["workers"] if w["cell"] is None]
        full = lines[-1]["cells"] == CELLS and len(spares) >= WORKERS
        base = (lines[-1]["step"] if base is None else base) if full else None
        if base is not None and lines[-1]["step"] >= base + steps:
            return status, lines[-1]
    raise SystemExit(f"the run did not come to full strength within {deadline:.0f} s: see {path}")


def measure_shoal(kills: int, what: str, step: float) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        process, path = start(Path(folder), step)
        try:
            for number in range(kills):
                status, last = wait_full(path, 10)
                victim = next(w for w in status["workers"] if w["cell"] == number % CELLS)
                if what == "node":
                    when = local.kill_node(CLUSTER, victim["node"]).time
                else:
                    when = time.time()
                    os.kill(victim["pid"], signal.SIGKILL)
                killed = Killed(victim["node"], when, last["step"] + 1, last["generation"], [])
                if what == "node":
                    local.add_node(CLUSTER)
                wait_full(path, 5)
                after, full = since_kill(killed, read.steps(path), CELLS)
                lost = sum(e["steps_lost"] for e in read.events(path) if e["kind"] == "recovery" and e["time"] > when)
                found.append({"next_commit": after, "full_strength": full, "steps_lost": lost})
                print(f"shoal: {what} killed, next commit {after:.2f} s, full strength {full:.2f} s", flush=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=5)
    options.add_argument("--what", choices=["node", "worker"], default="node")
    options.add_argument("--step", type=float, default=0.1, help="seconds of work in a micro-batch")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    local.up(CLUSTER, nodes=4, slots=2, say=print)
    try:
        shoal = measure_shoal(asked.kills, asked.what, asked.step)
        import ray_train_baseline

        theirs = ray_train_baseline.measure(CLUSTER, asked.kills, asked.what)
    finally:
        local.down(CLUSTER)
    ours = statistics.median(kill["next_commit"] for kill in shoal)
    other = statistics.median(kill["next_step"] for kill in theirs)
    result = {
        "what": asked.what,
        "shoal": {
            "next_commit_median": ours,
            "full_strength_median": statistics.median(kill["full_strength"] for kill in shoal),
            "steps_lost": sum(kill["steps_lost"] for kill in shoal),
            "kills": shoal,
        },
        "ray_train": {
            "next_step_median": other,
            "steps_lost": sum(kill["steps_lost"] for kill in theirs),
            "kills": theirs,
        },
        "ratio": other / ours,
    }
    print(json.dumps(result, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
