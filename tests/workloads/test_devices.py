"""The path on a GPU, without one (see `support.fake_cuda`): no operator mixes devices, the host waits for the device
where it must and nowhere else, and whatever lies in a CPU's memory gets where it belongs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorDeviceMismatchError
from torch.utils._python_dispatch import TorchDispatchMode

from shoal.worker.exact import Fixed
from shoal_workloads.config import DispatchKind
from shoal_workloads.model.deepseek import Block, DeepSeekV3
from shoal_workloads.model.moe import MoE
from shoal_workloads.model.rope import rope_table
from shoal_workloads.parallel.engine import Factors
from shoal_workloads.parallel.exchange import make_exchange
from shoal_workloads.recipe import adamw
from shoal_workloads.replica import PretrainShard
from tests.support.fake_cuda import fake_cuda
from tests.support.on_cuda import CONFIG, TOKENS, WORKERS, evenly, nobody_else


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


class Large(TorchDispatchMode):
    """Memories of at least `size` bytes on the device that operators make or touch."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.made = size, set[int]()
        self._held: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_cuda and out.untyped_storage().nbytes() >= self.size:
            self.made.add(out.untyped_storage()._cdata)
            self._held.append(out)  # else another may take its place, and its number
        return out


def test_a_step_makes_one_flat_copy_of_all_gradients() -> None:
    with fake_cuda() as watch:
        replica = PretrainShard(CONFIG, seed=0)
        for shard in replica.shards:
            shard.parameter.grad = torch.zeros_like(shard.local)
        size = 4 * sum(shard.local.numel() for shard in replica.shards)
        with Large(size) as large, watch.reading(lambda tensor: [0.0] * tensor.numel()):
            total = replica.sums_to_keep()
            replica.commit(total, [1.0, 1.0, 1.0, 4.0], replica.norm_sq(total))
        assert large.made == {total.untyped_storage()._cdata}


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
        fixed.agree([fixed.exponent], 1.0, again=False)


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


@pytest.mark.parametrize(("kind", "waits", "operators"), [("flat", 1, 90), ("hierarchical", 2, 160)])
def test_a_layer_of_experts_elsewhere_waits_for_counts_of_rows_alone(
    kind: DispatchKind, waits: int, operators: int
) -> None:
    with nobody_else(WORKERS):
        exchange = make_exchange(dist.group.WORLD, kind=kind, per_node=2)  # type: ignore[arg-type]
        with fake_cuda() as watch:
            with torch.device("cuda"):
                layer = MoE(CONFIG.model, exchange)
            x = torch.empty(1, TOKENS, CONFIG.model.d_model, dtype=torch.bfloat16, device="cuda")
            watch.operators.clear()
            with watch.reading(evenly):
                y, load, balance = layer(x)
            assert watch.waits == {"event": waits}
            assert {part.device.type for part in (y, load, balance)} == {"cuda"}
            assert sum(watch.operators.values()) <= operators, watch.operators


@pytest.mark.parametrize("kind", [None, "flat", "hierarchical"])
def test_backward_reads_no_value(kind: DispatchKind | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which is none of a CPU's branches either, and where to read a value is an error."""
    with nobody_else(WORKERS):
        exchange = None if kind is None else make_exchange(dist.group.WORLD, kind=kind, per_node=2)  # type: ignore[arg-type]
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
