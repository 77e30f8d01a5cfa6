"""Whole runs on a real cluster, submitted as jobs, with real nodes killed: nothing is lost, nothing is left over."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.chaos.strike import LocalTarget
from shoal.cluster import connect, local
from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.testing import outcome
from shoal_core.ckpt import among
from shoal_core.store import open_store
from tests.support.jobs import BIN, actors, alone, assert_reaped, hurry, submit, train, wait_for, write_job

pytestmark = pytest.mark.cluster
CLUSTER = "test-runs"
STEPS, LONG = 300, 350
QUIET: dict[str, Any] = {"checkpoint": {"every": 100}, "mlflow": {"enabled": False}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    local.up(CLUSTER, nodes=4, slots=2, gpus=2)
    yield CLUSTER
    local.down(CLUSTER)


def until(found: Callable[[], Any], what: str, deadline: float = 300.0) -> None:
    end = time.monotonic() + deadline
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def on_record(path: Path, kind: str) -> dict[str, Any]:
    """The first event of a kind, once it is there."""
    until(lambda: any(event["kind"] == kind for event in read.events(path)), f"no {kind} on record")
    return next(event for event in read.events(path) if event["kind"] == kind)


def test_two_nodes_die_and_nothing_is_lost(cluster: str, tmp_path: Path) -> None:
    """On GPUs that Ray counts and nobody has: each worker has its own."""
    file = write_job(tmp_path, run_id="killed", steps=STEPS, audit={"samples": True}, slot_resource="GPU", **QUIET)
    job = submit(CLUSTER, file)
    path = tmp_path / "runs" / "killed"
    for number in (1, 0):
        wait_for(path, 3, spares=2, recoveries=1 - number)
        crew = read.plan(path)[-1]["assignment"][str(number)]
        local.kill_node(CLUSTER, crew[0].rpartition("@")[2])
    wait_for(path, 3, recoveries=2)
    hurry(tmp_path)
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
    undisturbed, found = alone(STEPS), outcome(path)
    assert found.losses == pytest.approx(undisturbed.losses, rel=1e-4)
    assert {line["cells"] for line in steps[-1:]} == {2}
    last = among.last_whole(open_store(path / "checkpoints"))
    assert last is not None
    assert last.steps == STEPS
    torch.testing.assert_close(found.state["vector"], undisturbed.state["vector"], rtol=1e-4, atol=1e-5)
    assert (path / "report.html").stat().st_size > 10_000
    assert_reaped(CLUSTER, "killed")
    ready = [event for event in read.events(path) if event["kind"] == "worker_ready"]
    assert sorted((event["node"], event["device"]) for event in ready) == [
        (f"node{number}", device) for number in range(1, 5) for device in "01"
    ]
    for event in read.events(path):
        if event["kind"] == "recovery":
            assert set(event["phases"]) == {"detect", "decide", "place", "join", "state", "first_step"}
    local.add_node(CLUSTER)  # the others take three


def test_a_stopped_job_ends_in_order_and_is_resumed_in_the_same_mlflow_run(cluster: str, tmp_path: Path) -> None:
    file = write_job(tmp_path, run_id="resumed", steps=LONG, spares=0)
    path = tmp_path / "runs" / "resumed"
    job = submit(CLUSTER, file)
    wait_for(path, 3)
    until((path / layout.MLFLOW).exists, "MLflow was told nothing")
    status = read_json(path / "status.json")
    assert status is not None
    placed = {w["actor"] for w in status["workers"] if w["cell"] is not None}
    assert len(placed) == 4
    for worker in status["workers"]:
        if worker["cell"] is not None and "/cell" in worker["actor"]:
            seat = f"resumed/cell{worker['cell']}/stage0/shard{worker['coords']['shard']}@{worker['node']}"
            assert worker["actor"] == seat
    assert placed <= set(actors(CLUSTER))
    env = {**os.environ, **connect.environment(CLUSTER)}
    listed = subprocess.run([str(BIN / "ray"), "job", "list"], env=env, capture_output=True, text=True, timeout=300)
    running = [line for line in listed.stdout.split("JobDetails") if "RUNNING" in line]
    identity = next(word for word in running[0].replace("'", " ").split() if word.startswith("raysubmit_"))
    subprocess.run([str(BIN / "ray"), "job", "stop", identity], env=env, check=True, capture_output=True, timeout=300)
    job.communicate(timeout=600)
    first = read_json(path / "run.json")
    assert first is not None
    assert first["status"] == "stopped"
    assert_reaped(CLUSTER, "resumed")
    hurry(tmp_path)
    job = submit(CLUSTER, file, "--resume", "checkpoint.every=100")
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    second = read_json(path / "run.json")
    assert second is not None
    assert (second["status"], second["steps"]) == ("done", LONG)
    assert [line["step"] for line in read.steps(path)] == list(range(LONG))
    assert [line["loss"] for line in read.steps(path)] == pytest.approx(alone(LONG).losses, rel=1e-4)
    assert second["mlflow_run_id"] == first["mlflow_run_id"] is not None


def test_what_cannot_start_is_refused_before_anything_does(cluster: str, tmp_path: Path) -> None:
    file = write_job(tmp_path, run_id="refused")
    refused = train(CLUSTER, str(file), "workers_per_cell=64", "workload.global_batch=128")
    assert refused.returncode == 2, refused
    assert "needs 64 slots" in refused.stderr
    assert "remedy: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs" / "refused").exists()
    (tmp_path / "runs" / "refused").mkdir(parents=True)
    refused = train(CLUSTER, str(file))
    assert (refused.returncode, "'refused' is in use" in refused.stderr) == (2, True)
    assert_reaped(CLUSTER, "refused")


def test_the_controller_is_killed_and_a_node_is_taken_away_in_good_time(cluster: str, tmp_path: Path) -> None:
    job = submit(CLUSTER, write_job(tmp_path, run_id="moved", steps=LONG, audit={"samples": True}, spares=2, **QUIET))
    path = tmp_path / "runs" / "moved"
    target = LocalTarget(cluster, path, repair=1.0, notice=600.0)
    wait_for(path, 3, spares=2)
    generations = len(read.plan(path))
    target.strike("kill-controller", None)
    on_record(path, "controller_back")
    assert len(read.plan(path)) == generations  # nobody noticed
    wait_for(path, len(read.steps(path)) + 3, spares=2)
    node = read.plan(path)[-1]["assignment"]["1"][0].rpartition("@")[2]
    target.strike("drain", node)
    wait_for(path, 3, recoveries=1)
    assert on_record(path, "node_lost")["node"] == node  # nothing is left on it: Ray lets it go
    hurry(tmp_path)
    output, _ = job.communicate(timeout=1200)
    assert job.returncode == 0, output
    run = read_json(path / "run.json")
    assert run is not None
    assert (run["status"], run["steps"], run["steps_lost"], run["deaths"]) == ("done", LONG, 0, 0)
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [event["rung"] for event in read.events(path) if event["kind"] == "decision"] == ["drain"]
    assert [line["loss"] for line in read.steps(path)] == pytest.approx(alone(LONG).losses, rel=1e-4)
    assert node not in str(read.plan(path)[-1]["assignment"])
    assert_reaped(CLUSTER, "moved")
