"""What else may die, on a real cluster whose control store is on a real Redis: the head, and a job's driver."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster import local, processes
from shoal.cluster.state import load
from shoal.record import read
from shoal.record.jsonl import read_json
from shoal_core.errors import UserError
from tests.support.jobs import WORKLOAD, alone, assert_reaped, hurry, job_status, submit, train, wait_for, write_job
from tests.support.on_redis import cluster_on_redis

pytestmark = [pytest.mark.cluster, pytest.mark.long]
CLUSTER = "test-head"
STEPS, SHORT = 1200, 600
SLOWLY = WORKLOAD | {"seconds": 0.2}  # a head that comes back takes 10 s on an idle machine, a minute on a busy one


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with cluster_on_redis(CLUSTER) as name:
        yield name


def within(seconds: float, found: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def status(path: Path) -> dict[str, Any]:
    return read_json(path / "status.json") or {"workers": [], "written": 0.0}


def processes_of(path: Path) -> set[tuple[str, int]]:
    """(worker, pid) of a run as it is now."""
    return {(worker["actor"], worker["pid"]) for worker in status(path)["workers"]}


def kinds(path: Path) -> list[str]:
    return [event["kind"] for event in read.events(path)]


def test_the_head_dies_and_comes_back_and_training_does_not_notice(cluster: str, tmp_path: Path) -> None:
    file = write_job(tmp_path, run_id="headless", steps=STEPS, workload=SLOWLY, audit={"samples": True})
    path = tmp_path / "runs" / "headless"
    there = ("--no-wait", "--submission-id", "headless", "--entrypoint-resources", '{"driver": 1}')
    assert submit(CLUSTER, file, options=there).wait(timeout=600) == 0
    wait_for(path, 10, spares=2)
    before, generations = processes_of(path), len(read.plan(path))
    controller = status(path)["controller"]["pid"]
    head = processes.pids_of(load(CLUSTER), load(CLUSTER).head)
    assert controller in processes.pids_of(load(CLUSTER), load(CLUSTER).node("steady"))

    killed = local.kill_node(CLUSTER, "head")
    assert set(killed.pids) >= set(head)
    steps = len(read.steps(path))
    within(300, lambda: len(read.steps(path)) > steps + 20, "training stood still without a head")
    assert status(path)["written"] > killed.time + 1.0
    local.restart_head(CLUSTER, say=print)
    assert not set(head) & set(processes.pids_of(load(CLUSTER), load(CLUSTER).head))
    steps = len(read.steps(path))
    within(300, lambda: len(read.steps(path)) > steps + 20, "training stood still after the head came back")
    assert processes_of(path) == before
    assert status(path)["controller"]["pid"] == controller
    assert len(read.plan(path)) == generations

    victim = read.plan(path)[-1]["assignment"]["1"][0].rpartition("@")[2]
    local.kill_node(CLUSTER, victim)
    wait_for(path, len(read.steps(path)) + 5, recoveries=1)
    alive = {(actor, pid) for actor, pid in before if not actor.endswith(f"@{victim}")}
    assert alive <= processes_of(path)
    within(1200, lambda: (path / "run.json").exists(), "the run did not end")
    run = read_json(path / "run.json")
    assert run is not None
    assert (run["status"], run["steps"], run["steps_lost"]) == ("done", STEPS, 0)
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [event["rung"] for event in run["recovery_events"]] == ["heal"]
    assert [line["loss"] for line in read.steps(path)] == pytest.approx(alone(STEPS).losses, rel=1e-4)
    within(300, lambda: job_status(CLUSTER, "headless") == "SUCCEEDED", "the job's driver did not see the end")
    assert_reaped(CLUSTER, "headless")
    local.add_node(CLUSTER)


def test_a_worker_and_the_controller_die_while_the_head_is_away(cluster: str, tmp_path: Path) -> None:
    file = write_job(tmp_path, run_id="alone", steps=STEPS, workload=SLOWLY, audit={"samples": True})
    path = tmp_path / "runs" / "alone"
    there = ("--no-wait", "--submission-id", "alone", "--entrypoint-resources", '{"driver": 1}')
    assert submit(CLUSTER, file, options=there).wait(timeout=600) == 0
    wait_for(path, 10, spares=2)
    before = status(path)
    local.kill_node(CLUSTER, "head")
    with pytest.raises(UserError, match="up but for its head"):
        local.up(CLUSTER, mode="process", on_redis=True)
    victim = next(worker for worker in before["workers"] if worker["cell"] == 1)
    os.kill(victim["pid"], signal.SIGKILL)
    wait_for(path, len(read.steps(path)) + 5, recoveries=1)
    os.kill(before["controller"]["pid"], signal.SIGKILL)
    time.sleep(5.0)
    local.restart_head(CLUSTER, say=print)
    within(300, lambda: kinds(path).count("controller_back") == 1, "no controller came back")
    assert processes_of(path) >= {(w["actor"], w["pid"]) for w in before["workers"] if w is not victim}
    within(1200, lambda: (path / "run.json").exists(), "the run did not end")
    run = read_json(path / "run.json")
    assert run is not None
    assert (run["status"], run["steps"], run["steps_lost"], run["deaths"]) == ("done", STEPS, 0, 1)
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [line["loss"] for line in read.steps(path)] == pytest.approx(alone(STEPS).losses, rel=1e-4)
    within(300, lambda: job_status(CLUSTER, "alone") == "SUCCEEDED", "the job's driver did not see the end")
    assert_reaped(CLUSTER, "alone")


def test_the_driver_dies_and_the_same_job_submitted_again_follows_the_run(cluster: str, tmp_path: Path) -> None:
    file = write_job(tmp_path, run_id="adopted", steps=SHORT)
    path = tmp_path / "runs" / "adopted"
    first = submit(CLUSTER, file)
    wait_for(path, 10)
    workers = processes_of(path)
    drivers = [pid for pid in processes.pids_of(load(CLUSTER), load(CLUSTER).head) if is_driver(pid, file)]
    for pid in drivers:
        os.kill(pid, signal.SIGKILL)
    output, _ = first.communicate(timeout=600)
    assert drivers
    assert first.returncode != 0, output
    refused = train(CLUSTER, str(file), f"steps={SHORT + 1}")
    assert (refused.returncode, "with other settings of steps" in refused.stderr) == (2, True), refused
    second = submit(CLUSTER, file)
    assert processes_of(path) >= workers
    hurry(tmp_path)
    output, _ = second.communicate(timeout=1200)
    assert second.returncode == 0, output
    assert "run adopted is running: following it" in output
    assert "run adopted: done" in output
    run = read_json(path / "run.json")
    assert run is not None
    assert (run["status"], run["steps"], run["steps_lost"], run["deaths"], run["sessions"]) == ("done", SHORT, 0, 0, 1)
    assert [line["loss"] for line in read.steps(path)] == pytest.approx(alone(SHORT).losses, rel=1e-4)
    assert_reaped(CLUSTER, "adopted")


def is_driver(pid: int, file: Path) -> bool:
    """Whether a process is a driver of the job in `file`, or the shell around it."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"train" in command and str(file).encode() in command
