"""Whole runs on a real cluster, submitted as jobs, with real nodes killed: nothing is lost, nothing is left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
import yaml

from shoal import checkpoint
from shoal.chaos.strike import LocalTarget
from shoal.cluster import connect, local
from shoal.record import read
from shoal.record.jsonl import read_json
from shoal_workloads.synthetic import SyntheticConfig, SyntheticReplica

pytestmark = pytest.mark.cluster
BIN = Path(sys.executable).parent
CLUSTER = "test-runs"
STEPS, LONG = 300, 250
WORKLOAD = {"path": "shoal_workloads.synthetic:Synthetic", "seconds": 0.1, "global_batch": 8, "parameters": 1024}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    local.up(CLUSTER, nodes=4, slots=2)
    yield CLUSTER
    local.down(CLUSTER)


def write_job(folder: Path, **settings: Any) -> Path:
    job = {"steps": 40, "storage": str(folder / "runs"), "workload": WORKLOAD, "checkpoint": {"every": 10}}
    job["patience"] = 90.0  # nobody is frozen here, and a machine under load may stall for seconds
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job | settings))
    return file


def submit(file: Path, *more: str) -> subprocess.Popen[str]:
    """`ray job submit -- shoal train FILE ...`"""
    env = {**os.environ, **connect.environment(CLUSTER)}
    argv = [str(BIN / "ray"), "job", "submit", "--", str(BIN / "shoal"), "train", str(file), *more]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(*words: str) -> subprocess.CompletedProcess[str]:
    """`shoal train` inside the cluster, as a plain driver."""
    argv = connect.command(CLUSTER, [str(BIN / "shoal"), "train", *words])
    env = {**os.environ, **connect.environment(CLUSTER)}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600)


def wait_for(path: Path, steps: int, spares: int = 0, recoveries: int = 0, deadline: float = 900.0) -> None:
    """Until `steps` are committed, `recoveries` done, both cells there, and `spares` warm workers beside them."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        lines = read.steps(path) if (path / "steps.jsonl").exists() else []
        status = read_json(path / "status.json") or {"workers": []}
        fresh = bool(lines) and status.get("generation") == lines[-1]["generation"]  # it is written once a second only
        warm = [worker for worker in status["workers"] if worker["cell"] is None and fresh]
        done = sum(event["kind"] == "recovery" for event in read.events(path)) if lines else 0
        if len(lines) >= steps and lines[-1]["cells"] == 2 and len(warm) >= spares and done == recoveries:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not reach step {steps} with {spares} spares")


def actors() -> list[str]:
    """Living Ray actors of the cluster."""
    code = "import ray, json; from ray.util.state import list_actors; ray.init(log_to_driver=False); "
    code += "print(json.dumps([a.name for a in list_actors(filters=[('state', '=', 'ALIVE')])]))"
    argv = connect.command(CLUSTER, [sys.executable, "-c", code])
    env = {**os.environ, **connect.environment(CLUSTER)}
    found = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=True)
    return [name for name in json.loads(found.stdout.splitlines()[-1]) if name]


def assert_reaped(run_id: str, deadline: float = 300.0) -> None:
    """Nothing of a run is left on the cluster; the controller goes last, some seconds after its run."""
    end = time.monotonic() + deadline
    while left := [name for name in actors() if name.startswith(f"{run_id}/")]:
        assert time.monotonic() < end, left


def alone(steps: int) -> tuple[torch.Tensor, list[float]]:
    """The same training in this one process: final vector, and the loss of each step."""
    config = SyntheticConfig.model_validate({k: v for k, v in WORKLOAD.items() if k != "path"} | {"seconds": 0.0})
    replica, losses = SyntheticReplica(config, seed=0), []
    for step in range(steps):
        replica.begin(step)
        replica.accumulate(range(step * config.global_batch, (step + 1) * config.global_batch))
        total = replica.sums().clone()
        losses.append(replica.commit(total, replica.stats(), replica.norm_sq(total))["loss"])
    return replica.vector, losses


def test_two_nodes_die_and_nothing_is_lost(cluster: str, tmp_path: Path) -> None:
    job = submit(write_job(tmp_path, run_id="killed", steps=STEPS, audit={"samples": True}))
    path = tmp_path / "runs" / "killed"
    for number in (1, 0):
        wait_for(path, 10, spares=2, recoveries=1 - number)
        crew = read.plan(path)[-1]["assignment"][str(number)]
        local.kill_node(CLUSTER, crew[0].rpartition("@")[2])
    output, _ = job.communicate(timeout=1200)
    assert job.returncode == 0, output
    run, steps = read_json(path / "run.json"), read.steps(path)
    assert run is not None
    assert (run["status"], run["steps"], run["steps_lost"]) == ("done", STEPS, 0)
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [event["rung"] for event in run["recovery_events"]] == ["heal", "heal"]
    assert [line["step"] for line in steps] == list(range(STEPS))
    ids = sorted(i for line in read.samples(path) for i in line["ids"])
    assert ids == list(range(STEPS * 8))
    vector, losses = alone(STEPS)
    assert [line["loss"] for line in steps] == pytest.approx(losses, rel=1e-4)
    assert {line["cells"] for line in steps[-1:]} == {2}
    state = {"vector": torch.empty_like(vector)}
    last = checkpoint.last_whole(path / "checkpoints")
    assert last is not None
    assert last.steps == STEPS
    torch.distributed.checkpoint.load(state, checkpoint_id=last.path, no_dist=True)
    torch.testing.assert_close(state["vector"], vector, rtol=1e-4, atol=1e-5)
    assert (path / "report.html").stat().st_size > 10_000
    assert_reaped("killed")
    for event in read.events(path):
        if event["kind"] == "recovery":
            assert set(event["phases"]) == {"detect", "decide", "place", "join", "state", "first_step"}
    local.add_node(CLUSTER)
    local.add_node(CLUSTER)


def test_a_stopped_job_ends_in_order_and_is_resumed_in_the_same_mlflow_run(cluster: str, tmp_path: Path) -> None:
    file = write_job(tmp_path, run_id="resumed", steps=LONG)
    path = tmp_path / "runs" / "resumed"
    job = submit(file)
    wait_for(path, 12)
    status = read_json(path / "status.json")
    assert status is not None
    placed = {w["actor"] for w in status["workers"] if w["cell"] is not None}
    assert len(placed) == 4
    for worker in status["workers"]:
        if worker["cell"] is not None and "/cell" in worker["actor"]:
            seat = f"resumed/cell{worker['cell']}/stage0/shard{worker['coords']['shard']}@{worker['node']}"
            assert worker["actor"] == seat
    assert placed <= set(actors())
    env = {**os.environ, **connect.environment(CLUSTER)}
    listed = subprocess.run([str(BIN / "ray"), "job", "list"], env=env, capture_output=True, text=True, timeout=300)
    running = [line for line in listed.stdout.split("JobDetails") if "RUNNING" in line]
    identity = next(word for word in running[0].replace("'", " ").split() if word.startswith("raysubmit_"))
    subprocess.run([str(BIN / "ray"), "job", "stop", identity], env=env, check=True, capture_output=True, timeout=300)
    job.communicate(timeout=600)
    first = read_json(path / "run.json")
    assert first is not None
    assert first["status"] == "stopped"
    assert_reaped("resumed")
    job = submit(file, "--resume")
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    second = read_json(path / "run.json")
    assert second is not None
    assert (second["status"], second["steps"]) == ("done", LONG)
    assert [line["step"] for line in read.steps(path)] == list(range(LONG))
    assert [line["loss"] for line in read.steps(path)] == pytest.approx(alone(LONG)[1], rel=1e-4)
    assert second["mlflow_run_id"] == first["mlflow_run_id"] is not None


def test_what_cannot_start_is_refused_before_anything_does(cluster: str, tmp_path: Path) -> None:
    file = write_job(tmp_path, run_id="refused")
    refused = train(str(file), "workers_per_cell=64", "workload.global_batch=128")
    assert refused.returncode == 2, refused
    assert "a cell needs 64 slots" in refused.stderr
    assert "remedy: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs" / "refused").exists()
    (tmp_path / "runs" / "refused").mkdir(parents=True)
    refused = train(str(file))
    assert (refused.returncode, "'refused' is in use" in refused.stderr) == (2, True)
    assert_reaped("refused")


def test_the_controller_is_killed_and_a_node_is_taken_away_in_good_time(cluster: str, tmp_path: Path) -> None:
    job = submit(write_job(tmp_path, run_id="moved", steps=LONG, audit={"samples": True}))
    path = tmp_path / "runs" / "moved"
    target = LocalTarget(cluster, path, repair=1.0, notice=30.0)
    wait_for(path, 10, spares=2)
    generations = len(read.plan(path))
    target.strike("kill-controller", None)
    end = time.monotonic() + 300
    while not any(event["kind"] == "controller_back" for event in read.events(path)):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert len(read.plan(path)) == generations  # nobody noticed
    wait_for(path, len(read.steps(path)) + 5, spares=2)
    node = read.plan(path)[-1]["assignment"]["1"][0].rpartition("@")[2]
    target.strike("drain", node)
    output, _ = job.communicate(timeout=1200)
    assert job.returncode == 0, output
    run = read_json(path / "run.json")
    assert run is not None
    assert (run["status"], run["steps"], run["steps_lost"], run["deaths"]) == ("done", LONG, 0, 0)
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [event["rung"] for event in read.events(path) if event["kind"] == "decision"] == ["drain"]
    assert [line["loss"] for line in read.steps(path)] == pytest.approx(alone(LONG)[1], rel=1e-4)
    assert node not in str(read.plan(path)[-1]["assignment"])
    assert_reaped("moved")
