"""A state on a GPU and beside it, without one: how it is copied, kept, saved and healed (see `support.fake_cuda`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.multiprocessing.reductions import StorageWeakRef

from shoal.protocol.orders import Form
from shoal.timeouts import Timeouts
from shoal.worker.calls import Calls
from shoal.worker.courier import Courier
from shoal.worker.kept import KeptStates
from shoal.worker.lastresort import LastResort
from shoal.worker.loop import Loop
from shoal.worker.shelf import Shelf
from shoal.worker.snapshot import Snapshot, checksum
from shoal.worker.standing import Member
from shoal.worker.transfer import copy_state
from shoal.worker.world import RetainedState, World, park, resume
from shoal_core.ckpt.stage import Stage
from shoal_core.ckpt.state import held
from shoal_core.lane import Lane, lane_of
from shoal_workloads.parallel.shards import ParamShard
from shoal_workloads.replica import PretrainShard
from tests.support.fake_cuda import fake_cuda
from tests.support.on_cuda import CONFIG, nobody_else


class Wire:
    """What `copy_state` asks of groups: what was sent, by device."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def copy(self, group: Any, buffer: torch.Tensor) -> None:
        self.sent.append(buffer.device.type)


def test_a_state_on_two_devices_is_copied_kept_and_compared() -> None:
    with fake_cuda() as watch:
        replica = PretrainShard(CONFIG, seed=0)
        state = replica.tensors()
        assert {tensor.device.type for tensor in state} == {"cuda", "cpu"}
        for source in (True, False):
            wire = Wire()
            size = copy_state(wire, None, state, source=source)  # type: ignore[arg-type]
            assert size == sum(tensor.numel() * tensor.element_size() for tensor in state)
            assert set(wire.sent) == {"cuda", "cpu"}
            assert len(wire.sent) <= 4  # a run a device, not one a tensor
        snapshot = Snapshot(lane_of("cuda"))
        watch.waits.clear()
        for _ in range(2):
            snapshot.take(lambda: state, 3)
        assert not watch.waits
        assert watch.streams == ["side waits for main"] * 2
        assert {copy.device.type for copy in snapshot.lend().read()} == {"cpu"}
        assert watch.streams[2:] == ["the host waits for side"]
        assert snapshot.restore(state) == 3
        checksum(state)


def where(tensor: torch.Tensor) -> tuple[int, int]:
    """Which memory a tensor is of, while that is held."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())


def kit_of(runs_on: str, last: LastResort) -> Any:
    """What forming and leaving a cell ask of a worker's kit."""
    workload, courier = SimpleNamespace(runs_on=runs_on), Courier(Timeouts(60.0), str, Shelf(), "w0")
    mocks = {name: mock.Mock() for name in ("groups", "job", "injector")}
    return SimpleNamespace(workload=workload, last=last, courier=courier, **mocks)


def forming(monkeypatch: pytest.MonkeyPatch, runs_on: str, build: Callable[[RetainedState | None], Any]) -> Any:
    """A worker's loop that can form a cell and nothing else: its world opens with what `build` returns for a step."""
    monkeypatch.setattr(World, "open", lambda world, retained: setattr(world, "step", build(retained)))
    loop: Any = Loop.__new__(Loop)
    loop.kit = kit_of(runs_on, LastResort(60.0))
    loop.voice, loop.link, loop.rendezvous, loop.calls = mock.Mock(), mock.Mock(), mock.Mock(), Calls()
    loop.world, loop.kept = None, KeptStates(loop.kit.courier)
    return loop


def step_of(tensors: Callable[[], list[torch.Tensor]]) -> Any:
    """What leaving and going on ask of a step, around a state."""
    known = {"steps": 3, "evaluated": 2, "torn": False, "member": Member(0, 0, 2), "snapshot": Snapshot(Lane())}
    return SimpleNamespace(**known, tensors=tensors, abandon=mock.Mock(), healed=mock.Mock())


def test_the_kept_state_is_off_the_device_before_the_next_shard_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[list[tuple[int, int]]] = []
    on_device: list[StorageWeakRef] = []
    copied: list[tuple[tuple[int, int], tuple[int, int]]] = []
    away: dict[tuple[int, int], tuple[int, int]] = {}

    def build(retained: RetainedState | None) -> Any:
        assert all(one.expired() for one in on_device)
        away.update((source, target) for target, source in copied)
        replica = PretrainShard(CONFIG, seed=0)
        vars(replica)["itself"] = replica  # a shard hangs in cycles
        state = replica.tensors()
        built.append([where(tensor) for tensor in state])
        on_device.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in state if tensor.is_cuda)
        copied.clear()
        step = step_of(replica.tensors)
        if retained is not None:
            assert {tensor.device.type for tensor in retained.tensors} == {"cpu"}
            resume(step, retained)
        return step

    def noted(target: torch.Tensor, source: torch.Tensor, *how: Any) -> torch.Tensor:
        copied.append((where(target), where(source)))
        return torch.Tensor.copy_(target, source, *how)

    with fake_cuda(), mock.patch.object(FakeTensor, "copy_", noted):
        loop = forming(monkeypatch, "cuda", build)
        loop.form(Form(0, 1, 0, 2))
        assert on_device
        assert not any(one.expired() for one in on_device)
        loop.form(Form(0, 2, 0, 2, keep=True))
        old, new = built
        assert 0 < len(away) < len(old)  # averages and the guard's state stay where they are
        assert copied == list(zip(new, [away.get(place, place) for place in old], strict=True))


def test_the_kept_state_of_a_cpu_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    state, held = [torch.arange(3.0), torch.ones(2, 2)], list[RetainedState | None]()

    def build(retained: RetainedState | None) -> Any:
        held.append(retained)
        return step_of(lambda: state)

    loop = forming(monkeypatch, "cpu", build)
    loop.form(Form(0, 1, 0, 2))
    loop.form(Form(0, 2, 0, 2, keep=True))
    first, kept = held
    assert first is None
    assert kept is not None
    assert [where(tensor) for tensor in kept.tensors] == [where(tensor) for tensor in state]


def test_a_device_that_does_not_give_the_kept_state_ends_the_process() -> None:
    ended, said = threading.Event(), list[str]()

    def end(what: str) -> None:
        said.append(what)
        ended.set()

    def stuck(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        assert ended.wait(60.0)
        return target

    with fake_cuda(), mock.patch.object(FakeTensor, "copy_", stuck):
        park(RetainedState(3, 2, 0, [torch.zeros(2, device="cuda")]), LastResort(0.0, end))
    assert said == ["the copy of a kept tensor from the device"]


@pytest.mark.parametrize(("runs_on", "ends"), [("cuda", ["the wait for a kept state"]), ("cpu", [])])
def test_averages_that_a_device_never_gives_end_the_process_that_leaves_a_cell(runs_on: str, ends: list[str]) -> None:
    """A CPU's come, however late."""
    ended, said = threading.Event(), list[str]()

    def end(what: str) -> None:
        said.append(what)
        ended.set()

    def averages() -> list[torch.Tensor]:
        assert runs_on == "cpu" or ended.wait(60.0)
        return []

    world = World(Form(0, 1, 0, 2), kit_of(runs_on, LastResort(0.0, end)))
    world.step = step_of(averages)
    assert world.close() is not None
    assert said == ends


def test_who_leaves_a_cell_waits_for_who_still_copies_the_shard() -> None:
    step = step_of(list)
    step.snapshot = mock.Mock()
    world = World(Form(0, 1, 0, 2), kit_of("cuda", LastResort(60.0)))
    world.step = step
    assert world.close() is not None
    step.snapshot.lane.precede.assert_called_once()


def test_what_a_checkpoint_is_read_into_is_the_state_itself() -> None:
    with fake_cuda():
        replica = PretrainShard(CONFIG, seed=0)
        held = {tensor.untyped_storage()._cdata for tensor in replica.tensors()}
        found = [tensor.untyped_storage()._cdata for tensor in replica.state_dict().values()]
        assert set(found) <= held
        assert len(set(found)) == len(found)


def test_averages_beside_a_gpu_are_shards_of_a_whole_in_their_own_storage() -> None:
    with nobody_else(2):
        mesh = DeviceMesh("cuda", [0, 1], _init_backend=False, _rank=1)
        parameter = torch.nn.Parameter(torch.zeros(3, 4))
        shard = ParamShard("embedding.weight", parameter, (6, 4), (3, 0), 2.0, mesh, (Shard(0),))
        average = torch.zeros(3, 4)
        whole = shard.whole(average)
        assert isinstance(whole, DTensor)
        assert whole.to_local().data_ptr() == average.data_ptr()
        assert (whole.shape, whole.placements) == ((6, 4), (Shard(0),))
        assert whole.device_mesh.get_coordinate() == mesh.get_coordinate()


def test_a_checkpoint_of_shards_leaves_a_gpu_beside_training() -> None:
    with nobody_else(2):
        mesh = DeviceMesh("cuda", [0, 1], _init_backend=False, _rank=1)
        with fake_cuda() as watch:
            parameter = torch.nn.Parameter(torch.zeros(3, 4, device="cuda"))
            shard = ParamShard("embedding.weight", parameter, (6, 4), (3, 0), 2.0, mesh, (Shard(0),))
            state = {"model": shard.whole(shard.local), "bias": torch.zeros(4, device="cuda"), "ema": torch.zeros(3)}
            watch.waits.clear()
            staged = Stage(lane_of("cuda")).take(held(state))
            assert not watch.waits
            assert watch.streams == ["side waits for main"]
            staged.copy.wait()
            assert watch.streams[1:] == ["the host waits for side"]
            rooms = {piece.name: room for piece, room in staged.rooms.items()}
            for name, tensor in state.items():
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                room = rooms[name]
                assert (room.device.type, room.shape, room.dtype) == ("cpu", local.shape, local.dtype)
