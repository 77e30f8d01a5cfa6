"""Exact mode with the real workload: whatever died, the same parameters, moments, averages and biases to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.testing import Lab, Outcome, assert_no_trace, outcome
from shoal_core.ckpt import among
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.store import open_store
from tests.support.backends import BOTH_LONG
from tests.support.corpora import write_corpus
from tests.support.lab import lab

STEPS = 30


KINDS = {"model", "adam_m", "adam_v", "ema", "router_bias", "guard", "shoal"}


def kinds_of(found: Outcome) -> set[str]:
    """What its state is made of; `shoal`: exponents of exact sums, which show in no loss."""
    return {name.partition(".")[0] for name in found.state}


def workload(corpus: Path, parallel: dict[str, Any]) -> dict[str, Any]:
    sizes = {"d_model": 32, "n_layers": 3, "n_heads": 2, "d_head": 8, "d_rope": 4, "d_v": 8, "d_kv": 12, "d_q": 20}
    experts = {"n_experts": 8, "d_expert": 12, "d_ffn": 40, "top_k": 2}
    return {
        "path": "shoal_workloads.pretrain:Pretrain",
        "model": {"preset": "demo", "vocab_size": 400, **sizes, **experts},
        "data": {"corpus": str(corpus), "seq_len": 32},
        "batch": {"global_batch": 8, "micro_batch": 1},
        "schedule": {"budget": STEPS * 8 * 32, "lr": 3e-3, "warmup_steps": 0},
        "parallel": parallel,
        "ema_decay": 0.9,
    }


@BOTH_LONG
@pytest.mark.parametrize(
    ("parallel", "disturbed"),
    [
        ({"ep": 2}, {"rebalance": 3}),
        pytest.param({"pp": 2, "schedule": "dualpipe"}, {}, marks=pytest.mark.long),
        pytest.param({"pp": 2, "schedule": "1f1b"}, {}, marks=pytest.mark.long),
    ],
)
def test_a_run_with_two_deaths_ends_with_the_undisturbed_runs_bits(
    tmp_path: Path, parallel: dict[str, Any], disturbed: dict[str, Any], backend: str
) -> None:
    """Although its experts are placed anew each time, and those of the undisturbed run never; and in a pipeline.
    The undisturbed run is gloo's."""
    corpus = write_corpus(tmp_path / "corpus")
    found = []
    for deaths in (0, 2):
        folder = tmp_path / str(deaths)
        folder.mkdir()
        nodes = {f"n{i}": 2 for i in range(3)}
        section = workload(corpus, {**parallel, **(disturbed if deaths else {})})
        settings: dict[str, Any] = {"steps": STEPS, "reduce": "exact", "workload": section}
        settings["backend"] = backend if deaths else "gloo"  # whose bits they are
        with lab(folder, nodes, cells=2, workers_per_cell=2, **settings) as one:
            if deaths:
                one.full(3, spares=2)
                one.kill(one.members(1)[0])
                one.full(3)
                one.kill(one.members(0)[1])
            run = one.finished()
            assert (run["status"], run["steps_lost"]) == ("done", 0), one.story()
            assert len(one.events("death")) == deaths
            assert bool(one.events("experts_placed")) == bool(deaths and disturbed)
            found.append(outcome(one.path))
    calm, hurt = found
    assert len(calm.losses) == STEPS
    assert calm.losses[-1] < calm.losses[0] - 0.1
    assert kinds_of(calm) == KINDS
    assert calm.differences(hurt) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("parallel", "elastic", "after"),
    [
        ({"ep": 4, "rebalance": 3}, {"cells": [2, 3], "ep": [4, 2]}, [2, 2, 2]),
        ({}, {"cells": [2, 2], "ep": [1]}, [3, 3]),
    ],
)
def test_a_run_whose_cells_took_another_shape_ends_with_the_undisturbed_runs_bits(
    tmp_path: Path, parallel: dict[str, Any], elastic: dict[str, Any], after: list[int]
) -> None:
    """Experts that four workers shared are shared by two; what four workers cut is cut by three."""
    section = workload(write_corpus(tmp_path / "corpus"), parallel)
    section["model"] |= {"d_model": 36, "d_expert": 12}
    section["batch"] = {"global_batch": 24, "micro_batch": 1}
    settings: dict[str, Any] = {
        "cells": 2,
        "workers_per_cell": 4,
        "workload": section,
        "elastic": {"hold_s": 0.0, **elastic},
    }

    def disturb(one: Lab) -> None:
        one.full(3)
        one.kill_node(one.members(1)[2].rpartition("@")[2])

    one = assert_no_trace(tmp_path, {f"n{i}": 1 for i in range(8)}, disturb, steps=12, **settings)
    crews = [[len(crew) for crew in event["cells"].values()] for event in one.events("generation")]
    assert crews == [[4, 4], [4], after], one.story()


@pytest.mark.long
def test_a_run_that_is_resumed_with_fewer_cells_ends_with_the_undisturbed_runs_bits(tmp_path: Path) -> None:
    """Whatever a step hangs on is in the checkpoint: parameters, moments, averages, biases, the guard's averages, the
    position in the data, and by that tokens and rates."""
    section = workload(write_corpus(tmp_path / "corpus"), {"ep": 2})
    settings: dict[str, Any] = {"reduce": "exact", "workload": section, "workers_per_cell": 2}
    found = []
    for folder, sessions in (("calm", [(1, 6)]), ("resumed", [(2, 3), (1, 6)])):
        (tmp_path / folder).mkdir()
        for cells, steps in sessions:
            nodes = {f"n{i}": 2 for i in range(cells)}
            with lab(
                tmp_path / folder, nodes, cells=cells, steps=steps, resume=steps != sessions[0][1], **settings
            ) as one:
                assert one.finished()["status"] == "done", one.story()
                last = among.last_whole(open_store(one.path / "checkpoints"))
                assert last is not None
                marker = Checkpoint.open(last.folder).marker
                assert (last.steps, marker["samples"], marker["tokens"]) == (steps, 8 * steps, 8 * steps * 32)
                found.append(outcome(one.path))
    calm, half, resumed = found
    assert len(half.losses) == 3
    assert kinds_of(half) == KINDS
    assert calm.differences(resumed) == []
    assert "loss of step 5" in calm.differences(half)
