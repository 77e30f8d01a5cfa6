"""What must not kill a healthy run, on real processes: full disks, clumsy workloads, a controller that dies.
Where a cell forms again or goes back, the imitation of NCCL carries the tensors too; the others do neither."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from shoal.record import layout, read
from shoal.record.jsonl import line_of, read_json
from shoal.timeouts import Timeouts
from shoal_core.ckpt import among
from shoal_core.store import open_store
from tests.support.backends import BOTH, BOTH_LONG
from tests.support.lab import Lab, alone, hurry, lab

NODES = {f"n{i}": 2 for i in range(3)}
SMALL: dict[str, Any] = {"cells": 2, "audit": {"samples": True}}


def whole(one: Lab, steps: int) -> dict[str, Any]:
    """The run is done, its record has every step and sample once, and each loss is the undisturbed run's."""
    run = one.finished()
    assert (run["status"], run["steps"], run["steps_lost"]) == ("done", steps, 0), one.story()
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [line["step"] for line in one.steps()] == list(range(steps))
    assert [line["loss"] for line in one.steps()] == pytest.approx(alone(steps).losses, rel=1e-4)
    return run


@BOTH_LONG
def test_a_full_disk_stops_nothing_and_nothing_is_missing_afterwards(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, NODES, steps=250, **SMALL, backend=backend) as one:
        one.full(10, spares=2)
        living = one.living()
        one.disk_full(True)
        before = len(one.steps())
        one.until(lambda: one.committed() >= before + 15)
        assert len(one.steps()) == before
        assert one.living() == living
        victim = one.members(1)[0]
        one.kill(victim)  # and what is done about a death waits for no disk
        at = one.committed()
        one.until(lambda: one.committed() >= at + 15)
        one.disk_full(False)
        hurry(one, recoveries=1)
        run = whole(one, 250)
        assert run["deaths"] == 1
        (stalled,) = one.events("record_stalled")
        assert stalled["lines"] > 60
        assert "File too large" in stalled["reason"]
        assert [event["rung"] for event in one.events("decision")] == ["heal"]
        assert sum(event["actor"] == victim for event in one.events("death")) == 1


def test_a_run_is_stopped_on_a_full_disk_and_written_when_there_is_room(tmp_path: Path) -> None:
    with lab(tmp_path, NODES, steps=100_000, **SMALL) as one:
        one.full(10)
        one.disk_full(True)
        at = one.committed()
        one.until(lambda: one.committed() >= at + 20)
        one.stop()
        one.until(lambda: not one.living())
        one.disk_full(False)
        run = one.finished()
        assert (run["status"], run["reason"]) == ("stopped", "stopped by a signal")
        assert [line["step"] for line in one.steps()] == list(range(run["steps"]))
        assert run["steps"] >= at + 20


def test_a_stop_that_saves_first(tmp_path: Path) -> None:
    with lab(tmp_path, NODES, steps=100_000, **SMALL) as one:
        one.full(10)
        one.stop(save=True)
        run = one.finished()
        assert run["status"] == "stopped"
        last = among.last_whole(open_store(one.path / "checkpoints"))
        assert last is not None
        assert last.steps == run["steps"]
        assert run["reason"] == (
            f"stopped by a signal; its state is saved up to step {last.steps} of {last.steps} committed ones"
        )


@BOTH_LONG
def test_a_controller_dies_with_a_generation_that_no_disk_took(tmp_path: Path, backend: str) -> None:
    with lab(tmp_path, NODES, steps=200, **SMALL, backend=backend) as one:
        one.full(10, spares=2)
        one.disk_full(True)
        one.kill(one.members(1)[0])
        at, before = one.committed(), len(one.events("generation"))
        one.until(lambda: one.committed() >= at + 15)
        assert len(one.events("generation")) == before
        one.kill_controller()
        one.until(lambda: one.events("controller_back"))
        hurry(one)
        whole(one, 200)
        assert len(one.events("controller_back")) == 1


@BOTH_LONG
def test_a_worker_is_killed_while_the_controller_has_no_descriptor_left(tmp_path: Path, backend: str) -> None:
    """Its death is told although the order to kill it fails, and whoever is to take the spare's place comes later."""
    with lab(tmp_path, NODES, steps=100_000, **SMALL, backend=backend) as one:
        one.full(10, spares=2)
        living = one.living()
        with one.no_descriptors():
            one.kill(victim := one.members(1)[0])
            at = one.committed()
            one.until(lambda: one.committed() >= at + 20)
            assert len(one.living()) == len(living) - 1  # nobody new: asking for one takes a descriptor
        one.until(lambda: len(one.living()) == len(living))
        one.full(5)
        one.stop()
        run = one.finished()
        assert (run["status"], run["steps_lost"]) == ("stopped", 0)
        assert [event["actor"] for event in one.events("death")] == [victim]
        assert [event["rung"] for event in one.events("decision")] == ["heal"]


@pytest.mark.parametrize("workload", ["NoAccelerator", "Crashing"])
def test_a_worker_that_cannot_start_is_told_and_the_run_ends(tmp_path: Path, workload: str) -> None:
    with lab(tmp_path, NODES, steps=10, cells=1, workload={"path": f"tests.support.broken:{workload}"}) as one:
        run = one.finished()
        assert run["status"] == "failed"
        why = {"NoAccelerator": "no accelerator here", "Crashing": "out of everything"}[workload]
        assert why in run["reason"]
        told = one.events("not_started") if workload == "NoAccelerator" else one.events("error")
        assert "Traceback" in told[0]["trace"]
        assert why in told[0]["trace"]
        assert len(one.processes) <= 6


def test_workers_that_never_start_are_told_and_the_run_ends(tmp_path: Path) -> None:
    with lab(
        tmp_path, NODES, steps=10, cells=1, patience=0.5, workload={"path": "tests.support.broken:Dreaming"}
    ) as one:
        run = one.finished()
        why = f"it did not start within {Timeouts(0.5).start:.0f} s"
        assert (run["status"], run["deaths"]) == ("failed", 0)
        assert run["reason"].startswith(f"workers cannot start: {why}")
        assert {event["how"] for event in one.events("not_started")} == {why}


@BOTH
@pytest.mark.long
def test_workers_that_all_hang_in_the_same_step_end_the_run(tmp_path: Path, backend: str) -> None:
    settings: dict[str, Any] = {"patience": 10.0, "workload": {"path": "tests.support.broken:Hanging"}, **SMALL}
    with lab(tmp_path, NODES, steps=100, **settings, backend=backend) as one:
        run = one.finished()
        assert (run["status"], run["steps"]) == ("failed", 20), one.story()
        assert "step 20 was not committed: all workers were across for" in run["reason"]
        assert "2 times without a new step between them" in run["reason"]


def test_figures_that_a_workload_lacks_are_null(tmp_path: Path) -> None:
    with lab(tmp_path, NODES, steps=10, cells=1, workload={"path": "tests.support.broken:FewFigures"}) as one:
        run = one.finished()
        assert (run["status"], run["steps"], run["deaths"]) == ("done", 10, 0), one.story()
        assert {line["mtp_loss"] for line in one.steps()} == {None}


def test_a_workload_that_does_not_count_its_tokens_is_refused_by_name(tmp_path: Path) -> None:
    with lab(tmp_path, NODES, steps=10, cells=1, workload={"path": "tests.support.broken:NoTokens"}) as one:
        run = one.finished()
        assert (run["status"], run["deaths"]) == ("failed", 0), one.story()
        assert "without tokens" in run["reason"]


def test_who_takes_over_journals_nothing_twice(tmp_path: Path) -> None:
    workload = {"path": "tests.support.broken:Remarks", "seconds": 0.01, "hurry": str(tmp_path / "hurry")}
    with lab(tmp_path, NODES, steps=150, cells=1, workload=workload) as one:
        one.full(30)
        one.kill_controller()
        one.until(lambda: one.events("controller_back"))
        one.full(10)
        one.kill_controller()
        one.until(lambda: len(one.events("controller_back")) == 2)
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"]) == ("done", 150), one.story()
        assert [event["step"] for event in one.events("remark")] == list(range(150))


@BOTH_LONG
def test_rolling_back_too_often_saves_the_state(tmp_path: Path, backend: str) -> None:
    inject = [{"at": "accumulated", "step": 33, "cell": 1, "rank": 0, "how": "nan"}]
    snapshots = {"every": 10, "roll_backs": 0}
    with lab(tmp_path, NODES, steps=100, inject=inject, snapshots=snapshots, **SMALL, backend=backend) as one:
        run = one.finished()
        assert run["status"] == "failed"
        assert "rolled back more than 0 times, last at step 33" in run["reason"]
        last = among.last_whole(open_store(one.path / "checkpoints"))
        assert last is not None
        assert last.steps == run["steps"]
        assert last.steps >= 34


@pytest.mark.parametrize("recorded", [0, 1, 57])
def test_the_record_is_cut_to_where_training_begins(tmp_path: Path, recorded: int) -> None:
    """A run that never saved is resumed: it begins at step 0, whatever was on record."""
    old = [
        {"step": step, "time": time.time(), "loss": 9.0, "lm_loss": 9.0, "mtp_loss": 9.0, "grad_norm": 1.0, "lr": 1.0}
        | {"tokens": 12, "samples": [12 * step, 12 * step + 12], "cells": 1, "generation": 0, "seconds": 1.0}
        for step in range(recorded)
    ]
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / layout.STEPS).write_bytes(b"".join(line_of(line) for line in old))
    shares = [{"step": line["step"], "cell": 0, "worker": "w", "ids": list(range(*line["samples"]))} for line in old]
    (tmp_path / "lab" / layout.SAMPLES).write_bytes(b"".join(line_of(share) for share in shares))
    with lab(tmp_path, NODES, resume=True, steps=30, workload={"seconds": 0.0}, **SMALL) as one:
        assert whole(one, 30)["deaths"] == 0
        assert read_json(one.path / "run.json") is not None
        assert {line["step"] for line in read.samples(one.path)} == set(range(30))
