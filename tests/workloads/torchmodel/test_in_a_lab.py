"""A user's PyTorch model in runs on this machine whose workers are really killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.testing import Lab, alone, assert_exactly_once, assert_no_trace, lab, outcome, preload

preload("tests.support.torchmodels", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor")


def workload(kind: str = "Language", **settings: Any) -> dict[str, Any]:
    return {"path": f"tests.support.torchmodels:{kind}", "global_batch": 12, "lr": 3e-3, "ema_decay": 0.9, **settings}


def test_a_worker_is_killed_and_no_loss_is_another(tmp_path: Path) -> None:
    """2 cells of 2 workers, whose shards end in the middle of its matrices; by dropout that hangs on nobody's place."""
    steps, hurry = 20, tmp_path / "hurry"
    settings = workload(seconds=0.05, hurry=str(hurry))
    with lab(
        tmp_path, dict.fromkeys(("a", "b", "c"), 2), steps=steps, workload=settings, audit={"samples": True}
    ) as run:
        run.full(steps=3, spares=2)
        run.kill(run.members(cell=1)[0])
        run.until(lambda: run.events("death"))
        hurry.touch()
        summary = run.finished()
    assert (summary["status"], summary["steps_lost"], len(run.events("death"))) == ("done", 0, 1), run.story()
    assert_exactly_once(run.path, steps)
    expected = alone(workload(), steps).losses
    assert [line["loss"] for line in run.steps()] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def undisturbed(run: Lab, steps: int, lost: int = 0, **settings: Any) -> None:
    """The run ends with every step the one of a single process, and so many steps trained again."""
    summary = run.finished()
    assert (summary["status"], summary["steps_lost"]) == ("done", lost), run.story()
    assert_exactly_once(run.path, steps)
    expected = alone(workload(**settings), steps).losses
    assert [line["loss"] for line in run.steps()] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.long
def test_cells_of_two_become_cells_of_one_and_of_two_again(tmp_path: Path) -> None:
    """With an optimizer of torch's, whose state moves with the rows."""
    hurry = tmp_path / "hurry"
    settings = workload("WithSgd", seconds=0.02, hurry=str(hurry))
    nodes = {f"n{number}": 1 for number in range(4)}
    elastic = {"hold_s": 0.0, "cells": [2, 2]}
    with lab(tmp_path, nodes, steps=120, workload=settings, elastic=elastic, audit={"samples": True}) as run:
        run.full(steps=3)
        run.kill_node(run.members(1)[1].rpartition("@")[2])
        run.until(lambda: run.events("reshaped"))
        run.full(steps=3)
        run.add_node("n4", 1)
        run.until(lambda: len(run.events("reshaped")) == 2)
        hurry.touch()
        undisturbed(run, 120, kind="WithSgd")
        shapes = [(event["before"], event["after"]) for event in run.events("reshaped")]
        assert shapes == [([1, 2], [2, 1]), ([2, 1], [2, 2])]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["Language", "WithSgd"])
def test_a_checkpoint_of_two_shards_is_gone_on_from_by_three_and_by_one(kind: str, tmp_path: Path) -> None:
    for steps, workers in ((6, 2), (12, 3), (18, 1)):
        settings: dict[str, Any] = {"cells": 1, "workers_per_cell": workers, "audit": {"samples": True}}
        with lab(tmp_path, {"a": 3}, steps=steps, workload=workload(kind), resume=steps > 6, **settings) as run:
            assert run.finished()["status"] == "done", run.story()
    expected = alone(workload(kind), 18)
    assert_exactly_once(run.path, 18)
    assert [line["loss"] for line in run.steps()] == pytest.approx(expected.losses, rel=1e-5, abs=1e-6)
    found = outcome(run.path).state
    for name, value in expected.state.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.long
def test_every_holder_of_a_shard_dies_and_memory_elsewhere_has_it(tmp_path: Path) -> None:
    hurry = tmp_path / "hurry"
    settings = workload(seconds=0.02, hurry=str(hurry))
    nodes = {"a": 1, "b": 1, "c": 1, "d": 1, "e": 2, "f": 2}
    with lab(tmp_path, nodes, steps=100, workload=settings, snapshots={"every": 5}, audit={"samples": True}) as run:
        run.full(steps=12, spares=3)
        for cell in (0, 1):
            run.kill(run.members(cell)[1])
        run.until(lambda: run.events("recovery"))
        hurry.touch()
        lost = run.finished()["steps_lost"]
        assert [event["rung"] for event in run.events("recovery")][-1] == "recall", run.story()
        undisturbed(run, 100, lost)


@pytest.mark.long
def test_in_exact_mode_a_death_and_another_shape_leave_no_trace(tmp_path: Path) -> None:
    def disturb(run: Lab) -> None:
        run.full(3)
        run.kill_node(run.members(1)[1].rpartition("@")[2])
        run.until(lambda: run.events("reshaped"))
        (tmp_path / "hurry").touch()

    nodes = {f"n{number}": 1 for number in range(4)}
    settings = workload(point=False, seconds=0.02, hurry=str(tmp_path / "hurry"))
    run = assert_no_trace(
        tmp_path, nodes, disturb, steps=40, workload=settings, elastic={"hold_s": 0.0, "cells": [2, 2]}
    )
    assert [(event["before"], event["after"]) for event in run.events("reshaped")] == [([1, 2], [2, 1])]
