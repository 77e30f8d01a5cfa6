"""A real run in Ray Train's own state, as the dashboard's endpoint tells it: a node dies, the head dies, it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster import api, connect, local
from shoal.cluster.launch import NODE_LABEL
from shoal.cluster.state import load
from shoal.record import read
from shoal.record.jsonl import read_json
from tests.support.jobs import WORKLOAD, hurry, submit, wait_for, write_job
from tests.support.on_redis import cluster_on_redis

pytestmark = [pytest.mark.cluster, pytest.mark.long]
CLUSTER = "test-train-state"
RUNS = "/api/train/v2/runs/v1"
Run = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with cluster_on_redis(CLUSTER) as name:
        yield name


def seen(run_id: str) -> Run | None:
    """The newest run of that name; None while the dashboard has none."""
    try:
        found = api.get(load(CLUSTER), RUNS, timeout_s=60)["train_runs"]
    except OSError:
        return None
    return next((run for run in found if run["name"] == run_id), None)


def until(run_id: str, right: Callable[[Run], bool], what: str, seconds: float = 300.0) -> Run:
    end = time.monotonic() + seconds
    while (run := seen(run_id)) is None or not right(run):
        assert time.monotonic() < end, f"{what}: {run}"
        time.sleep(0.1)
    return run


class Looking(threading.Thread):
    """Notes what the endpoint says of a run, again and again."""

    def __init__(self, run_id: str) -> None:
        super().__init__(daemon=True)
        self.run_id, self.said, self.enough = run_id, list[Run](), threading.Event()

    def run(self) -> None:
        while not self.enough.wait(0.05):
            if run := seen(self.run_id):
                self.said.append(run)

    def statuses(self) -> list[str]:
        """Those it went through."""
        return [status for status, _ in groupby(run["status"] for run in self.said)]


def test_a_kill_and_a_head_that_comes_back_as_ray_tells_them(cluster: str, tmp_path: Path) -> None:
    slowly = WORKLOAD | {"seconds": 0.2, "hurry": str(tmp_path / "hurry")}
    file = write_job(tmp_path, run_id="shown", steps=1200, workload=slowly, mlflow={"enabled": False})
    path = tmp_path / "runs" / "shown"
    there = ("--no-wait", "--submission-id", "shown", "--entrypoint-resources", '{"driver": 1}')
    assert submit(CLUSTER, file, options=there).wait(timeout=600) == 0
    wait_for(path, 5, spares=2)
    run = until("shown", lambda run: run["status"] == "RUNNING", "it does not run")
    assert run["run_settings"]["scaling_config"]["num_workers"] == 4
    assert run["job_details"]["submission_id"] == "shown"
    (attempt,) = run["attempts"]
    assert [worker["world_rank"] for worker in attempt["workers"]] == [0, 1, 2, 3]
    assert {worker["status"] for worker in attempt["workers"]} == {"ALIVE"}
    ready = {event["pid"]: event["node"] for event in read.events(path) if event["kind"] == "worker_ready"}
    assert {worker["pid"] for worker in attempt["workers"]} <= ready.keys()
    ids = {node["labels"].get(NODE_LABEL): node["node_id"] for node in api.ray_nodes(load(CLUSTER))}
    assert all(worker["node_id"] == ids[ready[worker["pid"]]] for worker in attempt["workers"])

    looking = Looking("shown")
    looking.start()
    victim = read.plan(path)[-1]["assignment"]["1"][0].rpartition("@")[2]
    local.kill_node(CLUSTER, victim)
    wait_for(path, 6, recoveries=1)
    run = until("shown", lambda run: "0 steps lost" in (run["status_detail"] or ""), "it is not healed")
    looking.enough.set()
    looking.join()
    assert looking.statuses() == ["RUNNING", "RESTARTING", "RUNNING"]
    told = {run["status_detail"] for run in looking.said if run["status"] == "RESTARTING"}
    assert any("heal cell 1" in (detail or "") for detail in told), told
    assert run["status"] == "RUNNING"
    assert [attempt["status"] for attempt in run["attempts"]] == ["ERRORED", "FINISHED", "RUNNING"]
    assert [len(attempt["workers"]) for attempt in run["attempts"]] == [4, 2, 4]
    newest = read.plan(path)[-1]["assignment"]
    pids = {event["actor"]: event["pid"] for event in read.events(path) if event["kind"] == "worker_ready"}
    crew = [pids[actor] for cell in sorted(newest, key=int) for actor in newest[cell]]
    assert [worker["pid"] for worker in run["attempts"][-1]["workers"]] == crew
    dead = {worker["pid"] for worker in run["attempts"][0]["workers"] if worker["status"] == "DEAD"}
    assert dead == {pid for pid, node in ready.items() if node == victim} & set(pids.values())

    local.kill_node(CLUSTER, "head")
    local.restart_head(CLUSTER, say=print)
    again = until("shown", lambda run: run["status"] == "RUNNING", "it is not made again after the head came back")
    assert [attempt["attempt_id"] for attempt in again["attempts"]] == [
        attempt["attempt_id"] for attempt in run["attempts"]
    ]
    hurry(tmp_path)
    over = until("shown", lambda run: run["status"] not in ("RUNNING", "RESTARTING"), "it does not end", 900)
    assert (over["status"], over["status_detail"]) == ("FINISHED", "every step is committed")
    assert over["attempts"][-1]["status"] == "FINISHED"
    assert all(attempt["end_time_ns"] for attempt in over["attempts"])


def test_callbacks_hear_all_of_a_run_whose_controller_dies_and_workers_stand_where_they_may(
    cluster: str, tmp_path: Path
) -> None:
    alive = {node["labels"].get(NODE_LABEL, "") for node in api.ray_nodes(load(CLUSTER)) if node["state"] == "ALIVE"}
    allowed = sorted(name for name in alive if name.startswith("node"))[-1]
    script = str(Path(__file__).parent / "ray_trainer.py")
    argv = connect.command(cluster, [sys.executable, script, str(tmp_path), allowed])
    driver = subprocess.Popen(
        argv, env={**os.environ, **connect.environment(cluster)}, stdout=subprocess.PIPE, text=True
    )
    path, told = tmp_path / "runs" / "told", tmp_path / "told.jsonl"

    def heard() -> list[Run]:
        return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []

    def within(found: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + 400
        while not found():
            assert driver.poll() is None, what
            assert time.monotonic() < end, what
            time.sleep(0.1)

    within(lambda: len(heard()) > 5, "callbacks hear nothing")
    ready = [event for event in read.events(path) if event["kind"] == "worker_ready"]
    assert {event["node"] for event in ready} == {allowed}
    for event in ready:
        assert b"MARK=of the workers" in Path(f"/proc/{event['pid']}/environ").read_bytes().split(b"\0")
    status = read_json(path / "status.json") or {}
    os.kill(status["controller"]["pid"], signal.SIGKILL)
    within(lambda: any(event["kind"] == "controller_back" for event in read.events(path)), "no controller came back")
    before = len(heard())
    within(lambda: len(heard()) > before + 3, "the callbacks of the new controller hear nothing")
    os.kill(ready[1]["pid"], signal.SIGKILL)
    within(lambda: any("died" in line for line in heard()), "of a death nobody heard")
    hurry(tmp_path)
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert f"watch it: shoal top told, shoal dashboard told, {load(CLUSTER).dashboard_url}{RUNS}\n" in output
    assert "(of those with " in output
    assert "A callback failed, Raises.after_report: it raised RuntimeError: it has a fault." in output
    assert {line["name"] for line in heard() if "name" in line} == {"told"}
    assert {line["step"] for line in heard() if "step" in line} == set(range(300))
    assert [line["files"] for line in heard() if line.get("step") == 299 and line["files"]] == [
        len(list((path / "checkpoints" / "step-00000300").iterdir()))
    ]
