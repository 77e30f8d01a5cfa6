"""Layouts on a backend with NCCL's manners, where sends and receives have no tags: what gloo computes, to the bit."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from shoal.testing import World, fakenccl
from shoal.testing.fakenccl import FakeNccl
from shoal_workloads.parallel.pipeline.executor import Executor
from shoal_workloads.parallel.pipeline.wires import Wires
from shoal_workloads.parallel.schedule import Schedule, Transfer, build, needed_micro_batches, turns
from tests.support import layouts_world, synthetic
from tests.support.deliveries import Rule, by_line, program
from tests.support.layouts_world import Run

pytestmark = pytest.mark.fakenccl

SCHEDULES = ("1f1b", "interleaved", "zb1p", "zbv", "dualpipev", "dualpipe")


def trained(ranks: World, folder: Path, backend: str, parallel: dict[str, Any], layers: int) -> list[Run]:
    """One step of eight micro-batches, as few as fill every schedule, and an evaluation."""
    job = synthetic.tiny(model={"n_layers": layers}, batch={"global_batch": 8, "micro_batch": 1}, parallel=parallel)
    place = folder / backend
    place.mkdir()
    answers = ranks.run(layouts_world.train, job, 1, ranks.size, 1, str(place), backend=backend)
    return [answer for answer in answers if answer is not None]


def check(ranks: World, folder: Path, parallel: dict[str, Any], layers: int) -> None:
    expected = trained(ranks, folder, "gloo", parallel, layers)
    found = trained(ranks, folder, fakenccl.NAME, parallel, layers)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.metrics == theirs.metrics
        assert mine.evaluation == theirs.evaluation
        assert np.array_equal(mine.loads, theirs.loads)
        for one, other in zip(mine.gradient + mine.state, theirs.gradient + theirs.state, strict=True):
            assert one[:3] == other[:3]
            assert np.array_equal(one[3], other[3]), one[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_stages(pair: World, tmp_path: Path, schedule: str) -> None:
    check(pair, tmp_path, {"pp": 2, "schedule": schedule}, layers=3)


QUICK = ("zbv", "dualpipe")


@pytest.mark.parametrize(
    "schedule", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in SCHEDULES if name not in QUICK)]
)
def test_four_stages(four: World, tmp_path: Path, schedule: str) -> None:
    check(four, tmp_path, {"pp": 4, "schedule": schedule}, layers=7)


@pytest.mark.parametrize(
    "parallel", [{"ep": 4}, {"ep": 2}, {"pp": 2, "ep": 2, "schedule": "dualpipe", "timed_every": 1}]
)
def test_experts_beside_stages_and_shards(four: World, tmp_path: Path, parallel: dict[str, Any]) -> None:
    check(four, tmp_path, parallel, layers=2)


class Groups(Wires):
    """Of a rank that is a thread: a group over all ranks for each communicator of a rule."""

    def __init__(self, schedule: Schedule, rule: Rule, store: dist.Store, rank: int) -> None:
        self._rule = rule
        transfers = [op.transfer for place in range(schedule.ranks) for op in program(turns(schedule, place))]
        self.groups = {
            key: FakeNccl(dist.PrefixStore(str(key), store), rank, schedule.ranks, timedelta(seconds=60))
            for key in dict.fromkeys(rule(transfer) for transfer in transfers)
        }

    def send(self, transfer: Transfer, tensor: torch.Tensor) -> dist.Work:
        return self.groups[self._rule(transfer)].send([tensor], transfer.line.target, 0)

    def receive(self, transfer: Transfer, buffer: torch.Tensor) -> dist.Work:
        return self.groups[self._rule(transfer)].recv([buffer], transfer.line.source, 0)


class Names:
    """Stages that hand on who they are, and look at whom they hear from: (forward or not, stage, micro-batch)."""

    def __init__(self, last: int) -> None:
        self._last = last
        self.wrong = 0

    def _heard(self, value: torch.Tensor | None, *expected: int) -> None:
        self.wrong += value is not None and value.tolist() != list(expected)

    def forward(self, stage: int, micro_batch: int, x: torch.Tensor | None) -> torch.Tensor | None:
        self._heard(x, 1, stage - 1, micro_batch)
        return None if stage == self._last else torch.tensor([1, stage, micro_batch])

    def backward(self, stage: int, micro_batch: int, grad: torch.Tensor | None, *, wait: bool) -> torch.Tensor | None:
        self._heard(grad, 0, stage + 1, micro_batch)
        return None if stage == 0 else torch.tensor([0, stage, micro_batch])

    def weights(self, stage: int, micro_batch: int) -> None:
        """Nothing travels."""


def wrong_tensors(schedule: Schedule, rule: Rule) -> int:
    """How many tensors are taken for others in a step, over all ranks."""
    store, stages = dist.HashStore(), [Names(schedule.stages - 1) for _ in range(schedule.ranks)]
    met = threading.Barrier(schedule.ranks)

    def rank(place: int) -> None:
        wires = Groups(schedule, rule, store, place)
        like = torch.zeros(3, dtype=torch.int64)
        Executor(schedule, place, stages[place], like, wires).run(range(schedule.micro_batches))
        met.wait(60)
        for group in wires.groups.values():
            group.abort()

    threads = [threading.Thread(target=rank, args=(place,), daemon=True) for place in range(schedule.ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not met.broken
    assert met.n_waiting == 0
    return sum(stage.wrong for stage in stages)


@pytest.mark.parametrize(("schedule", "micro_batches", "wrong"), [("zbv", 13, 9), ("dualpipev", 20, 5)])
def test_wrong_tensors_are_found_where_both_kinds_share_a_direction(
    schedule: str, micro_batches: int, wrong: int
) -> None:
    """As many as the order check says; and none over the groups that pipelines make."""

    def a_direction(transfer: Transfer) -> Hashable:
        return transfer.line.source, transfer.line.target

    order = build(schedule, 4, micro_batches)
    assert wrong_tensors(order, a_direction) == wrong
    assert wrong_tensors(order, by_line(order)) == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_that_run_all_pairs_in_one_queue_change_nothing(schedule: str) -> None:
    """As torch's do that are made with the device."""
    order = build(schedule, 4, needed_micro_batches(schedule, 4, 13))
    fakenccl.one_queue(True)
    try:
        assert wrong_tensors(order, by_line(order)) == 0
    finally:
        fakenccl.one_queue(False)
