"""A notice that reaches a cell nobody can take over from, on real processes that are killed when their time is up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from shoal_core.ckpt import among
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.store import open_store
from tests.support.lab import WORKLOAD, Lab, alone, hurry, lab

STEPS = 400
NODES = {"n0": 1, "n1": 1}


def killed(one: Lab) -> dict[str, Any]:
    """The node is taken away, and another comes; what the run then comes to. Nothing of it is half-believed."""
    one.kill_node("n0")
    one.until(lambda: one.events("decision")[-1]["rung"] != "drain")
    one.add_node("n2", 1)
    hurry(one)
    run = one.finished()
    assert (run["status"], run["steps"]) == ("done", STEPS), one.story()
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [line["loss"] for line in one.steps()] == pytest.approx(alone(STEPS).losses, rel=1e-4)
    for whole in among.whole(open_store(one.path / "checkpoints")):
        Checkpoint.open(whole.folder).verify()
    return run


@pytest.mark.long
def test_what_fits_is_saved_and_once_more_as_late_as_it_fits(tmp_path: Path) -> None:
    settings = {"checkpoint": {"every": 0}, "audit": {"samples": True}, "workload": {"seconds": 0.1}}
    with lab(tmp_path, NODES, cells=1, steps=STEPS, **settings) as one:
        one.until(lambda: len(one.steps()) >= 5)
        one.drain("n0", seconds=20.0)
        one.until(lambda: len(one.events("checkpoint")) >= 2)
        first, last = one.events("last_save")[:2]
        assert [first["way"], last["way"]] == ["save", "save"], one.story()
        assert first["alone"] == first["fits"] > 0
        assert (first["checkpoint"], last["checkpoint"]) == (None, first["step"])
        assert first["left"] > last["left"] > 0
        time.sleep(max(0.0, one.drains["n0"] - time.time()))
        saved = one.events("checkpoint")[-1]["step"]
        run = killed(one)
        assert one.events("decision")[-1]["rung"] == "restore"
        assert run["steps_lost"] == one.events("death")[0]["step"] - saved


@pytest.mark.parametrize("copies", [pytest.param(False, marks=pytest.mark.long), True])
def test_what_does_not_fit_is_not_begun_and_what_is_left_counts(tmp_path: Path, copies: bool) -> None:
    settings: dict[str, Any] = {"checkpoint": {"every": 0}, "snapshots": {"every": 5 if copies else 0}}
    workload = {**WORKLOAD, "path": "tests.support.slow_storage:SlowStorage", "hurry": str(tmp_path / "hurry")}
    with lab(tmp_path, NODES, cells=1, steps=STEPS, workload=workload, audit={"samples": True}, **settings) as one:
        one.until(lambda: len(one.steps()) >= 12)
        one.drain("n0", seconds=60.0)
        one.until(lambda: one.events("last_save"))
        (chosen,) = one.events("last_save")
        assert chosen["way"] == ("copies" if copies else "checkpoint")
        assert (chosen["fits"] < chosen["alone"], chosen["checkpoint"]) == (True, None)
        one.full(12)
        run = killed(one)
        assert not (one.path / "checkpoints" / f"step-{chosen['step']:08d}").exists()
        (lost,) = [event["step"] for event in one.events("death")]
        assert one.events("decision")[-1]["rung"] == ("recall" if copies else "restore")
        assert run["steps_lost"] < lost if copies else run["steps_lost"] == lost
