"""Who waits for whom when a state leaves a device beside training: on streams that are as late as they may be."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from shoal.config import Job
from shoal.protocol.orders import Generation, Keeper
from shoal.saving.rhythm import Rhythm
from shoal.timeouts import Timeouts
from shoal.worker import courier as courier_module
from shoal.worker.courier import Courier
from shoal.worker.exact import Fixed
from shoal.worker.membership import Membership
from shoal.worker.shelf import Shelf
from shoal.worker.snapshot import Snapshot
from shoal.worker.standing import Member, Standing
from shoal.worker.step import Step
from shoal_core import lane as lane_module
from shoal_core.grid import UNKNOWN
from shoal_core.lane import SMALL, DeviceLane, HostLane, Lane, beside, lane_of
from shoal_workloads.synthetic import Synthetic, SyntheticConfig, SyntheticShard
from tests.support.late import GARBAGE, Late

CONFIG = SyntheticConfig(parameters=16, global_batch=4)
LEAVING = ["side waits for main", "copy on side", "event on side"]


def step_on(lane: Lane, tmp_path: Path) -> Step:
    """A step of a run of one worker whose sums are complete."""
    settings = {"run_id": "r", "storage": str(tmp_path), "cells": 1, "steps": 3, "workload": {"path": "a:B"}}
    workload, member = Synthetic(CONFIG), Member(0, 0, 1)
    job = Job.model_validate(settings)
    step = Step(member, workload, SyntheticShard(CONFIG, 0), mock.Mock(), job, mock.Mock())
    step.snapshot = Snapshot(lane)
    step.standing, step.steps = Standing(member, (0,)), 0
    step.todo = step.share()
    step.total = step.sums.add_up(0, step.todo)
    return step


def commit(step: Step) -> None:
    assert step.total is not None
    step.commit(step.shard.stats(), step.shard.norm_sq(step.total), [])


def copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_whoever_waits_for_nothing_finds_the_change_in_the_copy_or_garbage() -> None:
    """The imitation finds what it is for."""
    lane = DeviceLane(Late())
    state, room = torch.zeros(3), torch.empty(3)
    lane.follow()
    copy = lane.copy([room], [state])
    state.add_(1)
    lane.precede()
    assert room.tolist() == [GARBAGE] * 3
    copy.wait()
    assert room.tolist() == [1.0] * 3


def test_a_copy_waits_for_what_makes_its_sources_and_who_changes_them_for_the_copy() -> None:
    device = Late()
    lane = DeviceLane(device)
    state, room = torch.zeros(3), torch.empty(3)
    lane.follow()
    copy = lane.copy([room], [state])
    lane.precede()
    state.add_(1)
    copy.wait()
    copy.wait()
    assert room.tolist() == [0.0] * 3
    assert device.log == [*LEAVING, "main waits for side", "the host waits"]


def test_a_copy_holds_its_sources_until_it_has_ended() -> None:
    """Else their memory is another tensor's before it is read."""
    source, room = torch.ones(3), torch.empty(3)
    copy = DeviceLane(Late()).copy([room], [source])
    assert copy._sources == [source]
    copy.wait()
    assert copy._sources == ()


def test_without_a_lane_beside_it_what_is_copied_is_there() -> None:
    room = torch.zeros(3)
    Lane().copy([room], [torch.ones(3)])
    assert room.tolist() == [1.0] * 3


LARGE = SMALL // 4 + 1
"""Elements that a thread copies."""


def test_a_cpu_copies_what_is_large_beside_the_step_and_the_rest_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = lane_of("cpu")
    assert isinstance(lane, HostLane)
    go, put = threading.Event(), lane_module.put

    def late(targets: Any, sources: Any) -> None:
        if sources[0].numel() == LARGE:
            assert go.wait(60.0)
        put(targets, sources)

    monkeypatch.setattr(lane_module, "put", late)
    state = [torch.zeros(3), torch.zeros(LARGE)]
    rooms = [torch.ones_like(tensor) for tensor in state]
    lane.follow()
    copy = lane.copy(rooms, state)
    assert [float(room.sum()) for room in rooms] == [0.0, LARGE]
    state[0].add_(1)
    changing = beside(lambda: (lane.precede(), state[1].add_(1)), "commit")
    assert not changing.done()
    go.set()
    changing.result()
    copy.wait()
    copy.wait()
    assert [float(room.sum()) for room in rooms] == [0.0, 0.0]


def test_what_a_thread_met_that_copied_is_told_to_all_who_wait_for_it() -> None:
    lane = HostLane()
    copy = lane.copy([torch.zeros(LARGE)], [torch.zeros(LARGE + 1)])
    for wait in (copy.wait, lane.precede):
        with pytest.raises(RuntimeError, match="size"):
            wait()
    begun = lane.begin(lambda: lane.copy([torch.zeros(LARGE)], [torch.zeros(LARGE + 1)]))
    with pytest.raises(RuntimeError, match="size"):
        lane.precede()
    assert begun.done()


def test_the_step_after_a_snapshot_on_a_cpu_changes_nothing_of_it(tmp_path: Path) -> None:
    lane = HostLane()
    step = step_on(lane, tmp_path)
    before = copies(step.tensors())
    step.snapshot.take(step.tensors_by_commit(), 0)
    commit(step)
    assert not equal(step.tensors(), before)
    assert equal(step.snapshot.lend().read(), before)


def test_the_step_after_a_snapshot_waits_for_it_on_the_device_alone(tmp_path: Path) -> None:
    device = Late()
    step = step_on(DeviceLane(device), tmp_path)
    before = copies(step.tensors())
    step.snapshot.take(step.tensors, 0)
    commit(step)
    first, each, last = LEAVING
    assert device.log == [first, *[each] * len(before), last, "main waits for side"]  # and the host for nobody
    assert not equal(step.tensors(), before)
    assert equal(step.snapshot.lend().read(), before)


def test_a_state_that_is_gone_back_to_is_there_first(tmp_path: Path) -> None:
    device = Late()
    step = step_on(DeviceLane(device), tmp_path)
    before = copies(step.tensors())
    step.snapshot.take(step.tensors, 0)
    assert step.snapshot.restore(step.tensors()) == 0
    assert equal(step.tensors(), before)
    assert device.log[-2:] == ["main waits for side", "the host waits"]


class Waited(DeviceLane):
    """Averages are made as soon as somebody waits for them."""

    def __init__(self, device: Late) -> None:
        super().__init__(device)
        self.made = threading.Event()

    def precede(self) -> None:
        self.made.set()
        super().precede()


def test_averages_that_are_not_made_yet_are_waited_for_by_the_next_commit_alone(tmp_path: Path) -> None:
    device = Late()
    lane = Waited(device)
    step = step_on(lane, tmp_path)
    before = copies(step.tensors())

    def state() -> list[torch.Tensor]:
        assert lane.made.wait(60.0)
        return step.tensors()

    step.snapshot.take(state, 0)
    kept = step.snapshot.lend()
    assert not kept.begun.done()
    assert device.log == ["side waits for main"]
    commit(step)
    assert kept.begun.done()
    assert device.log[-1] == "main waits for side"
    assert equal(kept.read(), before)


def test_what_a_copy_met_is_told_to_whoever_waits_for_it(tmp_path: Path) -> None:
    def state() -> list[torch.Tensor]:
        raise RuntimeError("CUDA error: an illegal memory access")

    step = step_on(DeviceLane(Late()), tmp_path)
    step.snapshot.take(state, 0)
    for ask in (step.snapshot.lend().read, lambda: commit(step), lambda: step.snapshot.take(step.tensors, 0)):
        with pytest.raises(RuntimeError, match="illegal memory access"):
            ask()


def test_a_generation_begins_when_what_it_may_write_to_has_been_read(tmp_path: Path) -> None:
    device = Late()
    step = step_on(DeviceLane(device), tmp_path)
    step.snapshot.take(step.tensors, 0)
    groups: Any = step.groups
    groups.build.return_value = [None, None]
    step.enter(Generation(1, (0,), 0, 0, ()))
    assert device.log[-1] == "main waits for side"


def test_a_copy_has_the_exponent_of_when_it_was_begun(tmp_path: Path) -> None:
    step = step_on(Lane(), tmp_path)
    fixed = step.sums.fixed = Fixed(2)
    later = step.tensors_by_commit()
    fixed.state[0] = 7
    assert [int(state()[-1]) for state in (later, step.tensors)] == [UNKNOWN, 7]


def test_a_copy_that_is_lent_stays_while_the_next_is_taken() -> None:
    snapshot = Snapshot(DeviceLane(Late()))
    state = [torch.zeros(3)]
    snapshot.take(lambda: state, 1)
    lent = snapshot.lend()
    snapshot.lane.precede()
    state[0].add_(1)
    snapshot.take(lambda: state, 2)
    second = snapshot.lend()
    assert [tensor.tolist() for tensor in second.read()] == [[1.0] * 3]
    assert [tensor.tolist() for tensor in lent.read()] == [[0.0] * 3]
    snapshot.give_back(lent)  # too late to be used again, and no word on the second
    snapshot.lane.precede()
    state[0].add_(1)
    snapshot.take(lambda: state, 3)
    assert [tensor.tolist() for tensor in snapshot.lend().read()] == [[2.0] * 3]
    assert [tensor.tolist() for tensor in second.read()] == [[1.0] * 3]


def test_memory_that_is_given_back_is_used_for_the_next_copy() -> None:
    snapshot = Snapshot(DeviceLane(Late()))
    snapshot.take(lambda: [torch.zeros(3)], 1)
    first = snapshot.lend()
    snapshot.give_back(first)
    snapshot.take(lambda: [torch.ones(3)], 2)
    assert snapshot.lend().read() is first.read()


@pytest.mark.parametrize(("every", "waits"), [("auto", [1]), (1, [])])
def test_the_copy_that_is_timed_is_waited_for(every: Any, waits: list[int], tmp_path: Path) -> None:
    device = Late()
    step = step_on(DeviceLane(device), tmp_path)
    step.rhythm = Rhythm(every)
    step.rhythm.began(0)
    membership: Any = SimpleNamespace(
        step=step, shape=0, kit=SimpleNamespace(courier=Courier(Timeouts(60.0), str, Shelf(), "w0"))
    )
    found = []
    for step.steps in range(3):
        Membership._copy(membership)
        if "the host waits" in device.log:
            found.append(step.steps)
        step.snapshot.lane.precede()
        device.log.clear()
    assert found == waits


def test_what_is_sent_to_a_keeper_has_left_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[torch.Tensor]] = []
    monkeypatch.setattr(courier_module, "push", lambda held, *_: sent.append(copies(held.tensors)) or 1)
    step, courier = step_on(DeviceLane(Late()), tmp_path), Courier(Timeouts(60.0), str, Shelf(), "w0")
    courier.keeper = mock.Mock(spec=Keeper)
    before = copies(step.tensors())
    courier.keep(step, 0)
    sending: Any = courier._sending
    sending.join(60.0)
    assert equal(sent[0], before)
