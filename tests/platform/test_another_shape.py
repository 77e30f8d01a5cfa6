"""Cells that take another shape, on real processes that are really killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.testing import Lab, alone, assert_no_trace
from tests.support.corpora import write_corpus
from tests.support.lab import WORKLOAD, hurry, lab

WANTED = WORKLOAD | {"global_batch": 24, "parameters": 3072}
NODES = {f"n{number}": 1 for number in range(8)}


def running(folder: Path, steps: int, **settings: Any) -> Any:
    """2 cells of 4 workers without a spare, each on a node of its own; 2 cells it stays."""
    elastic = {"hold_s": 0.0, "cells": [2, 2]}
    shape = {"cells": 2, "workers_per_cell": 4, "elastic": elastic, "workload": dict(WANTED)}
    return lab(folder, NODES, steps=steps, audit={"samples": True}, **{**shape, **settings})


def sizes_of(one: Lab) -> list[list[int]]:
    """Workers of each cell, generation after generation."""
    return [[len(crew) for crew in event["cells"].values()] for event in one.events("generation")]


def undisturbed(steps: int) -> list[float]:
    """The losses of a run in one process."""
    return list(alone(WANTED | {"seconds": 0.0}, steps).losses)


def unharmed(one: Lab, steps: int) -> None:
    """The run ends with every step the undisturbed one's."""
    run = one.finished()
    assert (run["status"], run["steps"], run["steps_lost"]) == ("done", steps, 0), one.story()
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [line["loss"] for line in one.steps()] == pytest.approx(undisturbed(steps), rel=1e-5)


def test_seven_of_eight_workers_go_on_as_two_cells_of_three(tmp_path: Path) -> None:
    with running(tmp_path, 60) as one:
        one.full(5)
        victim = one.members(1)[2]
        one.kill_node(victim.rpartition("@")[2])
        one.until(lambda: one.events("reshaped"))
        hurry(one)
        unharmed(one, 60)
        assert [event["rung"] for event in one.events("decision")] == ["shrink", "reshape"], one.story()
        assert sizes_of(one) == [[4, 4], [4], [3, 3]]
        (told,) = one.events("reshaped")
        assert (told["before"], told["after"], told["idle"], told["steps_lost"]) == ([1, 4], [2, 3], [3, 1], 0)
        assert told["bytes"] > 0


def test_in_exact_mode_another_shape_leaves_no_trace(tmp_path: Path) -> None:
    """Which is found out with shards that are cut elsewhere: 3,084 entries between 3 and between 4."""

    def disturb(one: Lab) -> None:
        one.full(5)
        one.kill_node(one.members(1)[2].rpartition("@")[2])
        one.until(lambda: one.events("reshaped"))
        hurry(one)

    settings: dict[str, Any] = {"cells": 2, "workers_per_cell": 4, "elastic": {"hold_s": 0.0, "cells": [2, 2]}}
    workload = WANTED | {"parameters": 3084, "hurry": str(tmp_path / "hurt" / "hurry")}
    one = assert_no_trace(tmp_path, NODES, disturb, steps=40, workload=workload, **settings)
    assert sizes_of(one) == [[4, 4], [4], [3, 3]]


@pytest.mark.long
def test_a_worker_dies_while_the_new_cells_are_formed(tmp_path: Path) -> None:
    """One that holds nothing yet: cells of the new shape that stand go on, or the former one is put together again."""
    with running(tmp_path, 100) as one:
        one.full(5)
        victim, other = one.members(1)[2], one.members(1)[0]
        one.kill_node(victim.rpartition("@")[2])
        one.until(lambda: any(event["rung"] == "reshape" for event in one.events("decision")))
        one.kill_node(other.rpartition("@")[2])
        one.until(lambda: one.events("death")[1:])
        hurry(one)
        unharmed(one, 100)


@pytest.mark.long
def test_the_run_grows_back_when_a_node_returns(tmp_path: Path) -> None:
    with running(tmp_path, 400) as one:
        one.full(5)
        one.kill_node(one.members(1)[2].rpartition("@")[2])
        one.until(lambda: one.events("reshaped"))
        one.add_node("n8", 1)
        one.until(lambda: len(one.events("reshaped")) == 2)
        hurry(one)
        unharmed(one, 400)
        assert sizes_of(one) == [[4, 4], [4], [3, 3], [4, 4]]


@pytest.mark.long
def test_a_controller_that_comes_back_knows_the_shape(tmp_path: Path) -> None:
    with running(tmp_path, 100) as one:
        one.full(5)
        one.kill_node(one.members(1)[2].rpartition("@")[2])
        one.until(lambda: one.events("reshaped"))
        one.kill_controller()
        one.until(lambda: one.events("controller_back"))
        hurry(one)
        unharmed(one, 100)
        assert sizes_of(one) == [[4, 4], [4], [3, 3]]  # nobody noticed


@pytest.mark.long
def test_experts_that_four_shared_are_shared_by_two(tmp_path: Path) -> None:
    """Of a model with MTP, averages and experts that were moved: every loss is that of a single process."""
    sizes = {"d_model": 32, "n_layers": 3, "n_heads": 2, "d_head": 8, "d_rope": 4, "d_v": 8, "d_kv": 12, "d_q": 20}
    experts = {"n_experts": 8, "d_expert": 12, "d_ffn": 40, "top_k": 2}
    section: dict[str, Any] = {
        "path": "shoal_workloads.pretrain:Pretrain",
        "model": {"preset": "demo", "vocab_size": 400, **sizes, **experts},
        "data": {"corpus": str(write_corpus(tmp_path / "corpus")), "seq_len": 32},
        "batch": {"global_batch": 24, "micro_batch": 1},
        "schedule": {"budget": 30 * 24 * 32, "lr": 3e-3, "warmup_steps": 0},
        "optim": {"eps": 1e-3},  # as in the tests of layouts: rounding must not become full steps of Adam
        "ema_decay": 0.9,
        "parallel": {"ep": 4, "rebalance": 2},
    }
    elastic = {"hold_s": 0.0, "cells": [2, 3], "ep": [4, 2]}
    with running(tmp_path, 30, workload=section, elastic=elastic) as one:
        one.full(4)
        one.kill_node(one.members(1)[2].rpartition("@")[2])
        run = one.finished()
        assert (run["status"], run["steps_lost"]) == ("done", 0), one.story()
        assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
        assert sizes_of(one)[1:] == [[4], [2, 2, 2]], one.story()
        assert one.events("experts_placed")
        found = [line["loss"] for line in one.steps()]
        seed = one.job["seed"]
    whole = {**section, "parallel": {}, "batch": {"global_batch": 24, "micro_batch": 4}}
    assert found == pytest.approx(alone(whole, 30, seed).losses, rel=1e-5)


def test_a_run_that_lost_its_only_cell_goes_on_in_a_smaller_one_from_copies(tmp_path: Path) -> None:
    """Three of five workers live, too few for the cell: theirs is filled from what a spare keeps of its four shards."""
    settings: dict[str, Any] = {"cells": 1, "workers_per_cell": 4, "elastic": {"hold_s": 0.0, "cells": [1, 1]}}
    settings |= {"workload": dict(WANTED), "snapshots": {"every": 2, "elsewhere": True}}
    with lab(tmp_path, {f"n{number}": 1 for number in range(5)}, steps=60, **settings) as one:
        one.full(5, spares=1)
        one.kill_controller()  # its successor finds the spare there, and has it keep all copies
        one.until(lambda: one.events("controller_back"))
        one.full(6, spares=1)
        for victim in one.members(0)[1:3]:
            one.kill_node(victim.rpartition("@")[2])
        one.until(lambda: one.events("reshaped"))
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"]) == ("done", 60), one.story()
        assert [event["rung"] for event in one.events("decision")] == ["recall", "reshape"], one.story()
        assert sizes_of(one) == [[4], [3]]
        (told,) = one.events("reshaped")
        assert told["steps_lost"] < 4
        assert [line["loss"] for line in one.steps()] == pytest.approx(undisturbed(60), rel=1e-5)


@pytest.mark.long
def test_a_process_that_is_started_again_on_its_node_changes_no_shape(tmp_path: Path) -> None:
    """The other cell commits the next step; the change of shape waits for who is started there, and is not made."""
    settings: dict[str, Any] = {"cells": 2, "workers_per_cell": 2, "workload": dict(WANTED)}
    settings["elastic"] = {"hold_s": 30.0}
    with lab(tmp_path, {"n0": 2, "n1": 2}, steps=100, **settings) as one:
        one.full(5)
        one.kill(one.members(1)[0])
        one.until(lambda: len(one.events("generation")) > 2)
        hurry(one)
        unharmed(one, 100)
        assert [event["rung"] for event in one.events("decision")] == ["shrink"], one.story()
        assert sizes_of(one) == [[2, 2], [2], [2, 2]]
