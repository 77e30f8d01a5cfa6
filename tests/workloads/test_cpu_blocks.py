"""What a CPU computes block by block equals the formula on whole tensors, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shoal_workloads.model import mla
from shoal_workloads.model.attention_cpu import attend_in_blocks
from shoal_workloads.model.ffn_blocks import swiglu_blocks
from shoal_workloads.model.loss import head_nll
from shoal_workloads.model.norm import RMSNorm
from shoal_workloads.model.permute import routes_of
from shoal_workloads.model.rope import rope_apply
from shoal_workloads.precision import products
from shoal_workloads.precision.products import Products
from tests.support import synthetic


def both(
    ours: Callable[..., torch.Tensor], formula: Callable[..., torch.Tensor], leaves: list[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Output and gradients of both, as pairs."""
    found = []
    for function in (ours, formula):
        mine = [leaf.clone().requires_grad_() for leaf in leaves]
        y = function(*mine)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).sin()).sum().backward()
        grads = [leaf.grad for leaf in mine]
        assert all(grad is not None for grad in grads)
        found.append([y.detach(), *(grad for grad in grads if grad is not None)])
    return list(zip(*found, strict=True))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(params=[False, True], ids=["no bf16 products", "bf16 products"])
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with or without products of bfloat16, whichever this one is: torch emulates them."""
    monkeypatch.setattr(products, "_cpu_has_bf16", lambda: request.param)


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "d_head", "d_rope", "d_v"), [(300, 12, 4, 8), (128, 7, 6, 9), (5, 4, 2, 4)])
def test_attention(length: int, d_head: int, d_rope: int, d_v: int, dtype: torch.dtype) -> None:
    torch.manual_seed(length)
    heads, scale = 3, 0.3
    leaves = [torch.randn(2, length, heads, d_head + d_rope), torch.randn(2, length, heads, d_head + d_v)]
    leaves = [leaf.to(dtype) for leaf in [*leaves, torch.randn(2, length, d_rope)]]
    angle = torch.rand(length, d_rope // 2) * 6
    table = torch.stack([angle.cos(), angle.sin()], dim=-1)

    def formula(q: torch.Tensor, kv: torch.Tensor, k_r: torch.Tensor) -> torch.Tensor:
        q, kv, k_r = q.float(), kv.float(), k_r.float()
        shared = rope_apply(k_r.unsqueeze(2), table).expand(-1, -1, heads, -1)
        keys = torch.cat([kv[..., :d_head], shared], dim=-1)
        queries = torch.cat([q[..., :d_head], rope_apply(q[..., d_head:], table)], dim=-1)
        scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) * scale
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(ahead, -torch.inf).softmax(-1), kv[..., d_head:])

    for found, expected in both(lambda q, kv, k_r: attend_in_blocks(q, kv, k_r, table, scale), formula, leaves):
        assert relative(found, expected) < TOLERANCE[dtype]


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts(dtype: torch.dtype) -> None:
    """With an expert of more rows than a block, one of none, and three choices a token."""
    torch.manual_seed(0)
    tokens, choices, width, hidden = 400, 3, 12, 10
    experts = torch.stack([torch.tensor([0, 2, 4])[torch.randperm(3)] for _ in range(tokens)])
    experts[:200, 0] = 0
    experts[7, 1] = 1
    counts = torch.bincount(experts.flatten(), minlength=6)
    assert counts[0] > 512
    assert counts[5] == 0
    routes = routes_of(experts.flatten(), counts, choices)
    leaves = [torch.randn(tokens, width), torch.randn(6, 2 * hidden, width), torch.randn(6, width, hidden)]
    leaves = [leaf.to(dtype) for leaf in leaves]
    gates = torch.rand(tokens * choices)

    def formula(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        x, gate_up, down = x.float(), gate_up.float(), down.float()
        inner = torch.einsum("nkhd,nd->nkh", gate_up[experts], x)
        activated = F.silu(inner[..., :hidden]) * inner[..., hidden:] * gates.view(tokens, choices, 1)
        return torch.einsum("nkdh,nkh->nd", down[experts], activated)

    pairs = both(
        lambda x, gate_up, down, gates: swiglu_blocks(x, gate_up, down, gates, routes), formula, [*leaves, gates]
    )
    for found, expected in pairs:
        assert relative(found, expected) < TOLERANCE[dtype]


def test_one_network_for_all_rows() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(1100, 12), torch.randn(1, 20, 12), torch.randn(1, 12, 10)]

    def formula(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = (x @ gate_up[0].T).chunk(2, dim=1)
        return (F.silu(gate) * up) @ down[0].T

    for found, expected in both(swiglu_blocks, formula, leaves):
        assert relative(found, expected) < 1e-5


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head(dtype: torch.dtype) -> None:
    """With more rows than a block."""
    torch.manual_seed(0)
    leaves = [torch.randn(1500, 16).to(dtype), torch.randn(50, 16).to(dtype)]
    targets = torch.randint(50, (1500,))

    def formula(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return 2 * F.cross_entropy(hidden.double() @ head.double().T, targets, reduction="sum").view(1)

    for found, expected in both(lambda hidden, head: 2 * head_nll(hidden, head, targets)[0].view(1), formula, leaves):
        assert relative(found, expected) < TOLERANCE[dtype]
    with torch.no_grad():
        _, nll = head_nll(leaves[0], leaves[1], targets)
    each = F.cross_entropy(leaves[0].double() @ leaves[1].double().T, targets, reduction="none")
    assert relative(nll, each) < TOLERANCE[dtype]


def test_norm() -> None:
    norm = RMSNorm(20, 1e-6)
    x, weight = torch.randn(3, 400, 20), torch.rand(20)

    def ours(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    for found, expected in both(ours, lambda x, w: F.rms_norm(x, (20,), w, 1e-6), [x, weight]):
        assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("recompute", [False, True])
def test_what_other_devices_run_gives_the_same(monkeypatch: pytest.MonkeyPatch, recompute: bool) -> None:
    """Grouped products and fused attention, which are not chosen on a CPU, run here and agree."""
    config = synthetic.tiny(parallel={"recompute": recompute})
    in_blocks = synthetic.gradients(config)
    monkeypatch.setattr(mla, "in_blocks", lambda x: False)
    monkeypatch.setattr(Products, "in_blocks", lambda self, x: False)
    whole = synthetic.gradients(config)
    assert whole.keys() == in_blocks.keys()
    assert any(not np.array_equal(whole[name], in_blocks[name]) for name in whole)
    for name, value in whole.items():
        assert np.abs(value - in_blocks[name]).max() <= 1e-5 * np.abs(value).max() + 1e-12, name
