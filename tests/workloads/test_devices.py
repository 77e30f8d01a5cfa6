"""The path on a GPU, without one (see `support.fake_cuda`): no operator mixes devices, the host waits for the device
where it must and nowhere else, and whatever lies in a CPU's memory gets where it belongs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorDeviceMismatchError
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore

from shoal.protocol.orders import Form
from shoal.worker.calls import Calls
from shoal.worker.exact import Fixed
from shoal.worker.lastresort import LastResort
from shoal.worker.loop import Loop
from shoal.worker.snapshot import Snapshot, checksum
from shoal.worker.step import Member
from shoal.worker.transfer import copy_state
from shoal.worker.world import RetainedState, World, park, resume
from shoal_workloads.config import DispatchKind, PretrainConfig
from shoal_workloads.model.deepseek import Block, DeepSeekV3
from shoal_workloads.model.moe import MoE
from shoal_workloads.model.rope import rope_table
from shoal_workloads.parallel.engine import Factors
from shoal_workloads.parallel.exchange import make_exchange
from shoal_workloads.parallel.shards import ParamShard
from shoal_workloads.recipe import adamw
from shoal_workloads.replica import PretrainShard
from tests.support.fake_cuda import fake_cuda

MODEL = {
    "vocab_size": 64, "d_model": 32, "n_layers": 2, "n_dense": 1, "n_heads": 2, "d_head": 16, "d_rope": 8, "d_v": 16,
    "d_kv": 16, "d_q": 16, "d_ffn": 32, "d_expert": 16, "n_experts": 8, "top_k": 2, "n_groups": 2, "topk_groups": 1,
    "n_shared": 1, "mtp_depth": 1,
}  # fmt: skip
CONFIG = PretrainConfig.model_validate(
    {
        "model": MODEL,
        "data": {"corpus": "none", "seq_len": 16},
        "batch": {"global_batch": 4, "micro_batch": 1},
        "precision": "bf16",
        "device": "cuda",
        "ema_decay": 0.9,
    }
)
TOKENS, WORKERS = 32, 4


@contextmanager
def nobody_else(workers: int) -> Iterator[None]:
    """A world of which this process is rank 1 and whose other members are not there: collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=workers)
    try:
        yield
    finally:
        dist.destroy_process_group()


def evenly(counts: torch.Tensor) -> list[list[int]]:
    """Numbers of rows (V, P) as if every worker sent and got the same."""
    return [[TOKENS * CONFIG.model.top_k // WORKERS] * WORKERS] * len(counts)


class Wire:
    """What `copy_state` asks of groups: what was sent, by device."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def copy(self, group: Any, buffer: torch.Tensor) -> None:
        self.sent.append(buffer.device.type)


def test_the_imitation_finds_what_it_is_for() -> None:
    with fake_cuda() as watch:
        there = torch.zeros(4, dtype=torch.int64, device="cuda")
        with pytest.raises(FakeTensorDeviceMismatchError):
            there + torch.zeros(4, dtype=torch.int64)
        with pytest.raises(DynamicOutputShapeException):
            torch.bincount(there, minlength=4)
        assert not watch.waits
        int(there[0]), there.cpu(), torch.zeros(4, dtype=torch.int64).copy_(there)
        assert sum(watch.waits.values()) == 3


def test_a_step_on_a_gpu_mixes_no_devices_and_waits_for_none_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[torch.device] = []
    fused = torch._fused_adamw_

    def noted(parameters: Any, grads: Any, m: Any, v: Any, largest: Any, steps: list[torch.Tensor], **how: Any) -> None:
        counted.extend(step.device for step in steps)
        fused(parameters, grads, m, v, largest, steps, **how)

    monkeypatch.setattr(adamw.torch, "_fused_adamw_", noted)
    with fake_cuda() as watch:
        replica = PretrainShard(CONFIG, seed=0)
        tokens = torch.zeros(1, 17, dtype=torch.int64, device="cuda")
        replica.model.rope(16, tokens.device)
        watch.waits.clear()
        losses = replica.model(tokens)
        replica._figures.count(losses)
        assert not watch.waits
        for shard in replica.shards:  # as backward would leave them
            shard.parameter.grad = torch.zeros_like(shard.local)
        sums = replica.sums()
        assert not watch.waits
        with watch.reading(lambda tensor: [1.0] * tensor.numel()):
            assert len(replica.stats()) == 4
        assert watch.waits == {"tolist": 1}
        norm_sq = replica.norm_sq(sums)
        watch.waits.clear()
        with watch.reading(lambda tensor: [0.0] * tensor.numel()):
            metrics = replica.commit(sums, [1.0, 1.0, 1.0, 4.0], norm_sq)
        assert metrics["tokens"] == 64
        assert watch.waits == {"tolist": 1}  # how evenly experts were used
        assert {device.type for device in counted} == {"cuda"}
        replica.tensors()  # once the averages are made
        first, *rest = watch.streams
        assert (first, set(rest)) == ("side waits for main", {"the host waits for side"})


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
        snapshot = Snapshot()
        watch.waits.clear()
        for _ in range(2):
            snapshot.take(state, 3)
        assert not watch.waits
        assert watch.streams == ["the host waits for main"] * 2
        assert {copy.device.type for copy in snapshot.lend()} == {"cpu"}
        assert snapshot.restore(state) == 3
        checksum(state)


def where(tensor: torch.Tensor) -> tuple[int, int]:
    """Which memory a tensor is of, while that is held."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset()


def forming(monkeypatch: pytest.MonkeyPatch, runs_on: str, build: Callable[[RetainedState | None], Any]) -> Any:
    """A worker's loop that can form a cell and nothing else: its world opens with what `build` returns for a step."""
    monkeypatch.setattr(World, "open", lambda world, retained: setattr(world, "step", build(retained)))
    loop: Any = Loop.__new__(Loop)
    loop.kit = SimpleNamespace(workload=SimpleNamespace(runs_on=runs_on), groups=mock.Mock())
    loop.voice, loop.link, loop.rendezvous, loop.calls = mock.Mock(), mock.Mock(), mock.Mock(), Calls()
    loop.world, loop.retained, loop.last = None, None, LastResort(60.0)
    return loop


def step_of(tensors: Callable[[], list[torch.Tensor]]) -> Any:
    """What leaving and going on ask of a step, around a state."""
    known = {"steps": 3, "evaluated": 2, "torn": False, "member": Member(0, 0, 2)}
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


def test_sums_in_fixed_point_stay_where_they_were_made() -> None:
    with fake_cuda() as watch:
        fixed = Fixed(parts=4)
        fixed.begin()
        for _ in range(2):
            fixed.add(torch.zeros(5, device="cuda"))
        total = fixed.total()
        assert total is not None
        assert (total.device.type, total.dtype) == ("cuda", torch.int64)
        assert watch.waits == {"aten::_local_scalar_dense": 2}  # the largest entry of each micro-batch
        value = fixed.value(total)
        assert value.device.type == "cuda"
        fixed.agree([fixed.exponent], value, again=False)


def test_a_layer_with_all_its_experts_here_takes_few_operators() -> None:
    with fake_cuda() as watch:
        with torch.device("cuda"):
            layer = Block(CONFIG.model, None, dense=False)
        rope = rope_table(CONFIG.model, TOKENS, torch.device("cuda"))
        x = torch.empty(1, TOKENS, CONFIG.model.d_model, dtype=torch.bfloat16, device="cuda")
        watch.operators.clear()
        watch.waits.clear()
        layer(x, rope)
        assert not watch.waits
        assert sum(watch.operators.values()) <= 140, watch.operators


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


@pytest.mark.parametrize(("kind", "waits", "operators"), [("flat", 1, 90), ("hierarchical", 2, 160)])
def test_a_layer_of_experts_elsewhere_waits_for_counts_of_rows_alone(
    kind: DispatchKind, waits: int, operators: int
) -> None:
    with nobody_else(WORKERS):
        exchange = make_exchange(dist.group.WORLD, kind=kind, per_node=2)
        with fake_cuda() as watch:
            with torch.device("cuda"):
                layer = MoE(CONFIG.model, exchange)
            x = torch.empty(1, TOKENS, CONFIG.model.d_model, dtype=torch.bfloat16, device="cuda")
            watch.operators.clear()
            with watch.reading(evenly):
                y, load, balance = layer(x)
            assert watch.waits == {"tolist": waits}
            assert {part.device.type for part in (y, load, balance)} == {"cuda"}
            assert sum(watch.operators.values()) <= operators, watch.operators


@pytest.mark.parametrize("kind", [None, "flat", "hierarchical"])
def test_backward_reads_no_value(kind: DispatchKind | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which is none of a CPU's branches either, and where to read a value is an error."""
    with nobody_else(WORKERS):
        exchange = None if kind is None else make_exchange(dist.group.WORLD, kind=kind, per_node=2)
        with torch.device("meta"):
            model = DeepSeekV3(CONFIG.model, exchange, torch.bfloat16)
            tokens = torch.zeros(2, TOKENS // 2 + 1, dtype=torch.int64)
        monkeypatch.setattr(torch.Tensor, "tolist", evenly)
        losses = model(tokens, mtp=False)
        monkeypatch.undo()
        Factors(1.0, 0.0, 0.1).loss(losses).backward()
        with pytest.raises(RuntimeError, match="meta"):
            losses.lm.item()
        missing = [name for name, p in model.named_parameters() if p.grad is None and not name.startswith("mtp.")]
        assert not missing
