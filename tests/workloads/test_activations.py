"""What a layer keeps for backward, counted tensor by tensor, is what the formula says, to the byte."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shoal_workloads.activations import Manner, layer_bytes, waiting_bytes
from shoal_workloads.model import mla
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import Block
from shoal_workloads.model.presets import from_dial
from shoal_workloads.model.recompute import Level
from shoal_workloads.model.rope import rope_table
from shoal_workloads.parallel.exchange import make_exchange
from shoal_workloads.precision import fp8 as fp8_numerics
from shoal_workloads.precision.products import Products, multiply
from shoal_workloads.precision.weight_grads import Waiting

V3 = ModelConfig.from_preset("deepseek-v3")
LEVELS: list[Level] = [False, True, "ffn"]


class Alive(TorchDispatchMode):
    """Every memory that operators inside make or touch, but for that of `known`: whoever holds it (a graph, a context,
    a closure), what is not freed is kept."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def bytes(self, but: Iterable[torch.Tensor | None]) -> int:
        """Of what is alive, less that of `but`."""
        gc.collect()
        others = self._known | {tensor.untyped_storage()._cdata for tensor in but if tensor is not None}
        return sum(size for at, (ref, size) in self._seen.items() if at not in others and not ref.expired())


class FusedAttention(torch.autograd.Function):
    """Keeps what torch's fused kernels keep, in their layout, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(v)  # as v lies: position before head
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class FusedNorm(torch.autograd.Function):
    """As CUDA's kernel, which keeps its input and a statistic a row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches that a GPU takes."""
    monkeypatch.setattr(mla, "in_blocks", lambda x: False)
    monkeypatch.setattr(Products, "in_blocks", lambda self, x: False)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, is_causal, scale: FusedAttention.apply(q, k, v)
    )
    monkeypatch.setattr(F, "rms_norm", lambda x, shape, weight, eps: FusedNorm.apply(x, weight))


def kept(block: Block, x: torch.Tensor, rope: torch.Tensor) -> int:
    """Bytes that a forward pass leaves; backward must be able to follow."""
    with Alive([*block.parameters(), *block.buffers(), rope, x]) as alive:
        y, load, balance = block(x, rope)
    found = alive.bytes([y, load, balance]) + x.nbytes  # the input is kept; the output is the next layer's
    if load is not None:
        found += load.nbytes
    (y.sum() + (0 if balance is None else balance)).backward()
    assert x.grad is not None
    return found


def filled(block: Block) -> Block:
    """With values."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(0.0, 0.1)
    return block


@pytest.mark.parametrize("recompute", LEVELS)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("d_q", [24, None])
def test_a_cpu_layer_keeps_what_the_formula_says(d_q: int | None, dense: bool, recompute: Level) -> None:
    config = ModelConfig.model_validate(from_dial(64, 2, 8) | {"d_q": d_q, "d_v": 24})
    block = filled(Block(config, None, dense=dense))
    block.recompute = recompute
    sequences, length = 3, 50
    x = torch.randn(sequences, length, config.d_model, requires_grad=True)
    expected = layer_bytes(config, sequences, length, dense=dense, manner=Manner(recompute, width=4))
    assert kept(block, x, rope_table(config, length, x.device)) == expected


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("recompute", LEVELS)
@pytest.mark.parametrize("dense", [False, True])
def test_a_gpu_layer_of_v3_keeps_what_the_formula_says(
    monkeypatch: pytest.MonkeyPatch, dense: bool, recompute: Level, fp8: bool
) -> None:
    """At its own size, 4,096 tokens in bf16, by the branches of a GPU; on the meta device, so nothing is computed."""
    block, x, rope = v3_layer(monkeypatch, dense=dense, recompute=recompute, fp8=fp8)
    manner = Manner(recompute, fp8=fp8, fused=True)
    assert kept(block, x, rope) == layer_bytes(V3, 1, 4096, dense=dense, manner=manner)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("recompute", LEVELS)
@pytest.mark.parametrize("dense", [False, True])
def test_what_waits_for_the_gradients_of_weights(
    monkeypatch: pytest.MonkeyPatch, dense: bool, recompute: Level, fp8: bool
) -> None:
    """Between a zero-bubble schedule's I and W; but for where experts' rows end."""
    block, x, rope = v3_layer(monkeypatch, dense=dense, recompute=recompute, fp8=fp8)
    grad = torch.empty_like(x)
    with Alive([*block.parameters(), *block.buffers(), rope, x]) as alive, Waiting() as waiting:
        y, load, balance = block(x, rope)
        roots = [y] if balance is None else [y, balance]
        torch.autograd.backward(roots, [grad, *(torch.ones_like(root) for root in roots[1:])])
        del y, load, balance, roots
    grads = [p.grad for p in (*block.parameters(), x)]
    found = alive.bytes(grads)
    expected = 4096 * waiting_bytes(V3, dense=dense, manner=Manner(recompute, fp8=fp8, fused=True))
    assert 0 <= found - expected <= 4 * V3.n_experts
    waiting.finish()
    assert all(p.grad is not None for p in block.parameters())


def v3_layer(
    monkeypatch: pytest.MonkeyPatch, *, dense: bool, recompute: Level, fp8: bool
) -> tuple[Block, torch.Tensor, torch.Tensor]:
    """A layer on the meta device, its input and the rotations of the positions."""
    with torch.device("meta"):
        block = Block(V3, None, dense=dense).bfloat16()
        x = torch.empty(1, 4096, V3.d_model, dtype=torch.bfloat16, requires_grad=True)
        rope = torch.empty(4096, V3.d_rope // 2, 2)
    if fp8:  # emulated, whose grouped products are float32's, which the meta device does not know
        monkeypatch.setattr(fp8_numerics, "multiply", lambda a, b, *rest: multiply(a.bfloat16(), b.bfloat16(), *rest))
        monkeypatch.setattr(fp8_numerics, "_by_rows", lambda x, ends: x)
        for module in block.modules():
            if hasattr(module, "products"):
                module.products = fp8_numerics.EmulatedFp8()  # type: ignore[assignment]
    block.recompute = recompute
    return block, x, rope


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    """The group of a world of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
@pytest.mark.parametrize("recompute", [*LEVELS, "dispatch"])
def test_rows_of_other_workers(alone: dist.ProcessGroup, recompute: Level, kind: Any) -> None:
    """Rows that came from elsewhere are kept once, unless they travel again; a row is 256 bytes here."""
    config = ModelConfig.model_validate(from_dial(64, 2, 8))
    block = filled(Block(config, make_exchange(alone, kind=kind), dense=False))
    block.recompute = recompute
    x = torch.randn(2, 50, config.d_model, requires_grad=True)
    manner = Manner(recompute, width=4, fused=True, elsewhere=True)
    more = kept(block, x, rope_table(config, 50, x.device)) - layer_bytes(config, 2, 50, dense=False, manner=manner)
    assert 0 <= more < 64 * 2 * 50 * config.top_k, "indices of a dispatch that are not in the formula"


def test_recomputing_saves_what_the_report_says_it_does() -> None:
    """At V3's widths and in bf16: a MoE layer's share that norms and up-projections are, of what they leave."""
    config = ModelConfig.from_preset("deepseek-v3")
    all_of_it, less = (layer_bytes(config, 1, 4096, dense=False, manner=Manner(level)) for level in (False, True))
    assert all_of_it - less == 4096 * 2 * (2 * 7168 + 512 + 1536 + 128 * (128 + 64 + 128 + 128))
