"""A model's cells take another shape on real processes: the state is to the bit what it was, and what a checkpoint
restored onto the new mesh has; every loss is that of a run that nothing befell."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from shoal.testing import Lab, alone
from tests.support import watched
from tests.support.corpora import write_corpus
from tests.support.lab import lab
from tests.support.s3_server import account

STEPS = 10
SIZES = {"d_model": 24, "n_layers": 3, "n_heads": 2, "d_head": 8, "d_rope": 4, "d_v": 8, "d_kv": 12, "d_q": 20}
EXPERTS = {"n_experts": 8, "d_expert": 12, "d_ffn": 40, "top_k": 2}
LENGTH, BATCH = 16, 24


def section(corpus: Path, **more: Any) -> dict[str, Any]:
    """Of a model with an MTP module; Adam's eps as in the tests of layouts: rounding must not become full steps."""
    model = {"preset": "demo", "vocab_size": 400, **SIZES, **EXPERTS, **more.pop("model", {})}
    return {
        "path": "tests.support.watched:Watched",
        "model": model,
        "data": {"corpus": str(write_corpus(corpus)), "seq_len": LENGTH},
        "batch": {"global_batch": BATCH, "micro_batch": 1},
        "schedule": {"budget": 30 * BATCH * LENGTH, "lr": 3e-3, "warmup_steps": 0},
        "optim": {"eps": 1e-3},
        **more,
    }


def shapes(one: Lab) -> list[list[int]]:
    """Cells and workers of each, before the first change of shape and after each."""
    told = one.events("reshaped")
    return [told[0]["before"], *(event["after"] for event in told)]


def reshaped(one: Lab, count: int) -> None:
    """Wait for the change of shape of this number, and some steps after it."""
    one.until(lambda: len(one.events("reshaped")) >= count)
    steps = len(one.steps())
    one.until(lambda: len(one.steps()) >= steps + 2)


def strike(one: Lab, *places: tuple[int, int]) -> None:
    """Kill the nodes of workers, by cell and rank."""
    for node in {one.members(cell)[rank].rpartition("@")[2] for cell, rank in places}:
        one.kill_node(node)


def check(
    folder: Path, befall: Callable[[Lab], None], count: int, *, seats: int = 8, slots: int = 1, steps: int = STEPS,
    tolerance: float = 1e-5, storage: str | None = None, **settings: Any,
) -> list[list[int]]:  # fmt: skip
    """Run, have it befallen by what changes its shape `count` times, and look at everything. Returns the shapes."""
    workload = settings["workload"]
    nodes = {f"n{number}": slots for number in range(seats // slots)}
    shape = {"cells": 2, "workers_per_cell": 4, "audit": {"samples": True}}
    with lab(folder, nodes, steps=steps, storage=storage, **{**shape, **settings}) as one:
        one.full(3)
        befall(one)
        run = one.finished()
        assert (run["status"], run["steps"], run["steps_lost"]) == ("done", steps, 0), one.story()
        assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
        found, losses, seed = shapes(one), [line["loss"] for line in one.steps()], one.job["seed"]
    changed = list(watched.changes(folder / "watch"))
    assert len(changed) == count
    for number, change in enumerate(changed):
        assert change.differing() == []
        assert change.differing_from_checkpoint(workload, folder / f"checkpoint{number}") == []
        gave: Counter[str] = Counter()
        for given in change.given:
            gave.update({who: size for who, size in given["given"].items() if who != given["own"]})
        check_bytes(change)
    calm = undisturbed(json.dumps(workload), steps, seed)
    assert losses == pytest.approx(calm, rel=tolerance)
    return found


def check_bytes(change: watched.Changed) -> None:
    """Each range of the new state was had once; whoever held some gave some."""
    gave: Counter[str] = Counter()
    for given in change.given:
        assert sum(given["given"].values()) == given["bytes"]
        gave.update(given["given"])
    assert sum(gave.values()) == sum(
        part.nbytes for parts in change.got.values() for name, places in parts.items() if name in change.state
        for _, _, part in places if name != "schedules"
    )  # fmt: skip
    assert len(gave) == len(change.had)


@cache
def undisturbed(workload: str, steps: int, seed: int) -> list[float]:
    """Losses of a run that nothing befalls, in this process. `workload`: its section, in JSON."""
    whole = {**json.loads(workload), "path": "shoal_workloads.pretrain:Pretrain", "parallel": {}}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker: with more, so small a model takes many times as long on busy cores
    try:
        return alone(whole | {"batch": {"global_batch": BATCH, "micro_batch": 8}}, steps, seed).losses
    finally:
        torch.set_num_threads(threads)


def one_dies(one: Lab) -> None:
    strike(one, (1, 2))
    reshaped(one, 1)


@pytest.mark.long
def test_stages_with_experts_become_experts_alone(tmp_path: Path) -> None:
    """Of a model with MTP and averages: pp 2 x ep 2, then ep 2."""
    workload = section(tmp_path / "corpus", ema_decay=0.9, parallel={"pp": 2, "ep": 2, "schedule": "1f1b"})
    elastic = {"hold_s": 0.0, "cells": [2, 3], "pp": [2, 1], "ep": [2], "fsdp": False}
    found = check(tmp_path, one_dies, 1, workload=workload, elastic=elastic, steps=3 * STEPS)
    assert found == [[1, 4], [3, 2]]


def test_one_stage_of_two_and_back(tmp_path: Path) -> None:
    """pp 2, 1, 2, by a schedule in which each holds two pieces of the model; back when a node comes."""

    def befall(one: Lab) -> None:
        strike(one, (1, 1))
        reshaped(one, 1)
        one.add_node("m0", 1)
        reshaped(one, 2)

    workload = section(tmp_path / "corpus", model={"n_layers": 4}, parallel={"pp": 2, "schedule": "zbv"})
    elastic = {"hold_s": 0.0, "cells": [2, 3], "pp": [2, 1], "ep": [1], "fsdp": False}
    found = check(tmp_path, befall, 2, seats=4, steps=40, workers_per_cell=2, workload=workload, elastic=elastic)
    assert found == [[1, 2], [3, 1], [2, 2]]


@pytest.mark.long
def test_shards_of_four_of_three_of_two_and_of_four(tmp_path: Path) -> None:
    """fsdp 4, 3, 2, 4, with MTP and averages."""

    def befall(one: Lab) -> None:
        one_dies(one)
        for node in list(one.alive)[: len(one.alive) - 5]:
            one.kill_node(node)
        reshaped(one, 2)
        for number in range(8 - len(one.alive)):
            one.add_node(f"m{number}", 1)
        reshaped(one, 3)

    workload = section(tmp_path / "corpus", ema_decay=0.9)
    elastic = {"hold_s": 0.0, "cells": [2, 2]}
    found = check(tmp_path, befall, 3, steps=24, workload=workload, elastic=elastic)
    assert [workers for _, workers in found] == [4, 3, 2, 4]


@pytest.mark.long
@pytest.mark.parametrize("dispatch", ["flat", "hierarchical"])
def test_experts_that_moved_lie_where_they_lay(tmp_path: Path, dispatch: str) -> None:
    """ep 4, then 2, once experts were moved: by workers of one node each, and of two on a node that are spoken to
    together."""
    slots = 2 if dispatch == "hierarchical" else 1
    parallel = {"ep": 4, "rebalance": 2, "dispatch": dispatch, **({"ep_node": 2} if slots == 2 else {})}
    workload = section(tmp_path / "corpus", ema_decay=0.9, parallel=parallel)

    def befall(one: Lab) -> None:
        one.until(lambda: one.events("experts_placed"))
        steps = len(one.steps())
        one.until(lambda: len(one.steps()) >= steps + 2)
        one_dies(one)

    elastic = {"hold_s": 0.0, "cells": [2, 3], "ep": [4, 2], "fsdp": False}
    found = check(tmp_path, befall, 1, steps=16, slots=slots, workload=workload, elastic=elastic)
    assert found == [[1, 4], [3, 2]]


@pytest.mark.long
def test_stages_of_four_of_two_of_one_and_of_four(tmp_path: Path) -> None:
    """pp 4, 2, 1, 4, by the schedule in which two hold each stage."""

    def befall(one: Lab) -> None:
        one_dies(one)
        kept = one.members(2)
        for node in [name for name in list(one.alive) if not any(who.endswith(f"@{name}") for who in kept)][1:]:
            one.kill_node(node)
        reshaped(one, 2)
        for number in range(8 - len(one.alive)):
            one.add_node(f"m{number}", 1)
        reshaped(one, 3)

    workload = section(
        tmp_path / "corpus", model={"n_layers": 4}, ema_decay=0.9, parallel={"pp": 4, "schedule": "dualpipe"}
    )
    elastic = {"hold_s": 1.5, "cells": [2, 3], "pp": [4, 2, 1], "ep": [1], "fsdp": False}  # new nodes come together
    found = check(tmp_path, befall, 3, steps=30, workload=workload, elastic=elastic)
    assert found == [[1, 4], [3, 2], [3, 1], [2, 4]]


@pytest.mark.long
def test_shards_that_cut_the_blocks_of_fp8(tmp_path: Path) -> None:
    """fsdp 4, then 2, with products of FP8: blocks of 128 x 128 are scaled as they are gathered, whoever holds them."""
    wide = {"d_model": 128, "d_expert": 128, "d_ffn": 128, "d_kv": 128, "d_q": 128, "n_heads": 4, "d_v": 32}
    workload = section(tmp_path / "corpus", model={**wide, "n_experts": 4}, precision="fp8")
    elastic = {"hold_s": 0.0, "cells": [2, 3]}
    found = check(tmp_path, one_dies, 1, workload=workload, elastic=elastic, tolerance=1e-2)
    assert found == [[1, 4], [3, 2]]


@pytest.mark.long
def test_with_the_record_on_s3(tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ep 4, then 2: no byte of the state is read from there."""
    account(monkeypatch, s3_endpoint, tmp_path)
    boto3.client("s3").create_bucket(Bucket="layouts")
    workload = section(tmp_path / "corpus", parallel={"ep": 4})
    elastic = {"hold_s": 0.0, "cells": [2, 3], "ep": [4, 2], "fsdp": False}
    found = check(
        tmp_path, one_dies, 1, workload=workload, elastic=elastic, storage="s3://layouts/runs",
        checkpoint={"every": 2},
    )  # fmt: skip
    assert found == [[1, 4], [3, 2]]
