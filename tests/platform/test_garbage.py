"""What an aborted collective leaves is garbage, and nothing says so: no step may commit it. A step of two cells of one
worker each, on the backend that imitates NCCL; and the same with the faults put back, to see that they are found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shoal.config import Job
from shoal.testing.fakenccl import GARBAGE
from shoal.worker.faults import Fault, meaning
from shoal.worker.groups import Stopped
from shoal.worker.inject import Injector
from shoal.worker.nccl import NcclCommunicator, NcclTransport
from shoal.worker.standing import Member, Standing
from shoal.worker.step import CellBroken, Step
from shoal_workloads.synthetic import Synthetic, SyntheticConfig, SyntheticShard
from tests.support.nccl_workers import LONG, Worker, together

pytestmark = pytest.mark.fakenccl

Hurts = dict[tuple[int, str], Callable[[Step], object]]
CONFIG = SyntheticConfig(parameters=16, global_batch=4)


def honest() -> list[float]:
    """What the first step makes of the vector, in this one thread."""
    shard = SyntheticShard(CONFIG, 0)
    shard.accumulate([[index] for index in range(4)])
    total = shard.sums().clone()
    shard.commit(total, shard.stats(), shard.norm_sq(total))
    return shard.vector.tolist()


HONEST = pytest.approx(honest(), rel=1e-5)


@pytest.fixture(autouse=True)
def _on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


class Hurt(Injector):
    """Does something at points of a step."""

    def __init__(self, what: dict[str, Callable[[], object]]) -> None:
        self._what = what

    def hit(self, point: str, *_: Any) -> None:
        self._what.get(point, int)()


def step_of(worker: Worker, tmp_path: Path) -> Step:
    """The first step of a run of two cells, its groups built."""
    workload = Synthetic(CONFIG)
    settings = {"run_id": "r", "storage": str(tmp_path), "cells": 2, "steps": 3, "workload": {"path": "a:B"}}
    shard, job = SyntheticShard(workload.config, 0), Job.model_validate(settings)
    step = Step(Member(worker.rank, 0, 1), workload, shard, worker.groups, job, Injector([], str(tmp_path)))
    step.steps, step.standing = 0, Standing(step.member, (0, 1))
    step.cross, step.all = worker.group(), worker.gloo()
    step.todo = step.share()
    return step


def test_a_step_whose_sums_are_whole_commits_the_same_everywhere(tmp_path: Path) -> None:
    assert together(partial(commit, tmp_path, {})) == [HONEST, HONEST]


def commit(tmp_path: Path, hurt: Hurts, worker: Worker) -> list[float]:
    """A worker's vector after its first step; `hurt`: what happens at points of it, by rank."""
    step = step_of(worker, tmp_path)
    step.injector = Hurt({point: partial(what, step) for (rank, point), what in hurt.items() if rank == worker.rank})
    step.run()
    return step.shard.tensors()[0].tolist()


def aborted_across(tmp_path: Path) -> list[Any]:
    """The sum over the cells is aborted at both ends while it is under way."""
    met, over = threading.Barrier(2), threading.Event()

    def abort(step: Step) -> None:
        assert isinstance(step.cross, NcclCommunicator)
        step.cross._abandoned = True
        step.cross._group.abort()  # at once: cell 1 has no part in the sum yet

    def run(worker: Worker) -> Any:
        worker.watch(over)
        hurts: Hurts = {(0, "across"): lambda step: (abort(step), met.wait(LONG)), (1, "across"): abort}
        hurts[1, "accumulated"] = lambda step: met.wait(LONG)
        try:
            return commit(tmp_path, hurts, worker)
        except (RuntimeError, Stopped):
            over.set()  # as the controller would have it
            raise

    return together(run)


def test_nobody_votes_on_a_sum_that_was_aborted(tmp_path: Path) -> None:
    one, other = aborted_across(tmp_path)
    assert meaning(one) is Fault.PEER
    assert isinstance(other, Stopped) or meaning(other) is Fault.PEER


def test_a_vote_on_garbage_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault put back: whatever has completed is taken for finished. The cells commit what no run comes to."""
    monkeypatch.setattr(NcclCommunicator, "check", lambda self: None)
    one, _ = aborted_across(tmp_path)
    assert isinstance(one, list)
    assert one != HONEST


def aborted_inside(tmp_path: Path, raised: Exception | None = None) -> list[Any]:
    """The world of cell 0 is cut while it computes. `raised`: what its code makes of what that leaves."""
    over = threading.Event()

    def run(worker: Worker) -> Any:
        worker.watch(over)
        step = step_of(worker, tmp_path)
        if worker.rank == 0:
            accumulate = step.shard.accumulate

            def cut(micro_batches: Sequence[Sequence[int]]) -> None:
                worker.transport.cut()
                accumulate(micro_batches)
                if raised is not None:
                    raise raised
                step.shard.sums().fill_(GARBAGE)  # what an aborted gather or scatter makes of them

            step.shard.accumulate = cut  # type: ignore[method-assign]
        try:
            step.run()
        except (RuntimeError, CellBroken, Stopped, IndexError):
            over.set()
            raise
        finally:
            worker.transport.freed()
        return step.shard.tensors()[0].tolist()

    return together(run)


def test_nobody_counts_micro_batches_of_a_cell_that_was_cut(tmp_path: Path) -> None:
    one, other = aborted_inside(tmp_path)
    assert isinstance(one, CellBroken)
    assert isinstance(other, Stopped)


def test_what_the_code_makes_of_garbage_is_not_the_codes_fault(tmp_path: Path) -> None:
    (one, *_) = aborted_inside(tmp_path, IndexError("index 123 is out of range"))
    assert isinstance(one, CellBroken)


def test_micro_batches_of_a_cell_that_was_cut_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NcclTransport, "check", lambda self: None)
    one, _ = aborted_inside(tmp_path)
    assert isinstance(one, list)
    assert one != HONEST


def test_nobody_votes_on_sums_of_a_cell_that_was_cut_once_all_was_issued(tmp_path: Path) -> None:
    """On a device they may still be under way when the last micro-batch has been issued: only the look before the vote,
    after the last wait for the device, tells."""
    over = threading.Event()

    def run(worker: Worker) -> Any:
        worker.watch(over)
        try:
            return commit(tmp_path, {(0, "across"): lambda step: worker.transport.cut()}, worker)
        except (RuntimeError, CellBroken, Stopped):
            over.set()
            raise
        finally:
            worker.transport.freed()

    one, other = together(run)
    assert isinstance(one, CellBroken)
    assert isinstance(other, Stopped)
