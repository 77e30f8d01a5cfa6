"""A run on a cluster that begins with no node, and gets them by Ray's autoscaler, whatever the cloud's manners."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.record import read
from shoal.record.jsonl import read_json
from tests.support.autoscaled import Autoscaled, autoscaled
from tests.support.jobs import hurry, wait_for, write_job

pytestmark = [pytest.mark.cluster, pytest.mark.long]
QUIET: dict[str, Any] = {"checkpoint": {"every": 100}, "mlflow": {"enabled": False}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Autoscaled]:
    with autoscaled({1: 3, 3: 2}) as one:
        yield one


def until(found: Callable[[], Any], what: str, deadline: float = 300.0) -> None:
    end = time.monotonic() + deadline
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def told(path: Path, kind: str) -> list[dict[str, Any]]:
    return [dict(event) for event in read.events(path) if event["kind"] == kind] if path.exists() else []


def status(path: Path) -> dict[str, Any]:
    return read_json(path / "status.json") or {}


def ended(path: Path, job: Any, steps: int) -> dict[str, Any]:
    """How a run ended that lost nothing."""
    output, _ = job.communicate(timeout=600)
    run = read_json(path / "run.json")
    assert run is not None, output
    assert (run["status"], run["steps"], run["steps_lost"]) == ("done", steps, 0), output
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    return run


def begun(cluster: Autoscaled, folder: Path, run_id: str, steps: int, **settings: Any) -> tuple[Path, Any]:
    """A run of two cells of two that has got its nodes; and its command."""
    file = write_job(folder, run_id=run_id, steps=steps, audit={"samples": True}, spares=0, **QUIET, **settings)
    job = cluster.train(file)
    path = folder / "runs" / run_id
    until(lambda: (path / "steps.jsonl").exists() or job.poll() is not None, "the run did not begin", 600.0)
    assert job.poll() is None, job.communicate()[0]
    wait_for(path, 3)
    return path, job


def machines(path: Path) -> list[str]:
    """Machine of every seat."""
    crews = read.plan(path)[-1]["assignment"].values()
    return [worker.rpartition("@")[2] for crew in crews for worker in crew]


def test_a_run_gets_its_nodes_whatever_their_slots_and_asks_for_no_more_at_its_end(
    cluster: Autoscaled, tmp_path: Path
) -> None:
    path, job = begun(cluster, tmp_path, "grown", 300)
    assert len(set(machines(path))) > 1, "cells of two over machines of one and of three slots"
    hurry(tmp_path)
    ended(path, job, 300)
    assert cluster.waiting() == []


def test_a_dead_node_is_replaced_once_the_cloud_mends_its_manners(cluster: Autoscaled, tmp_path: Path) -> None:
    """One that gives nothing, then one whose nodes die at once, cost lines of the journal: training goes on."""
    path, job = begun(cluster, tmp_path, "replaced", 600, autoscale={"wait_s": 5})
    cluster.behave("mute")
    cluster.kill(machines(path)[-1])
    until(lambda: told(path, "nodes_not_given"), "the cloud was waited for for ever")
    until(lambda: status(path).get("asked"), "it does not ask again")
    os.kill(status(path)["controller"]["pid"], signal.SIGKILL)
    until(lambda: told(path, "controller_back"), "the controller did not come back")
    at = len(read.steps(path))
    cluster.behave("frail")
    until(lambda: told(path, "nodes_short_lived"), "nothing is said of nodes that die")
    assert len(read.steps(path)) > at, "training waited"
    cluster.behave()
    wait_for(path, at, recoveries=1)
    assert told(path, "nodes_came")
    hurry(tmp_path)
    ended(path, job, 600)
    assert cluster.waiting() == []


def test_a_run_that_is_dead_asks_for_nothing(cluster: Autoscaled, tmp_path: Path) -> None:
    """One that asks for more spares than the cloud has machines."""
    path, job = begun(cluster, tmp_path, "dead", 600, autoscale={"spares": 12})
    until(cluster.waiting, "nothing is asked for")
    cluster.script("ray.kill(ray.get_actor('dead/controller'))")
    until(lambda: not cluster.waiting(), "Ray still asks for nodes")
    job.kill()
    job.communicate()
    assert told(path, "nodes_asked")
