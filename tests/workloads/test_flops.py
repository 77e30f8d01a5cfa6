"""The closed form of a step's FLOPs against what torch counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoal_workloads.flops import token_flops
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3


def _added(a: Any, b: tuple[int, int], c: tuple[int, int], *_: Any, **__: Any) -> int:
    return 2 * b[0] * b[1] * c[1]


def counted(run: Any) -> dict[str, int]:
    """FLOPs by kind; torch leaves products out that are added in place."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _added}) as mode:
        run()
    return {str(kind): flops for kind, flops in mode.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("mtp_depth", [0, 1])
def test_products_with_weights_are_those_that_torch_counts(mtp_depth: int) -> None:
    c = ModelConfig.from_preset(
        "demo", d_model=32, n_heads=2, n_layers=3, n_dense=1, vocab_size=64, mtp_depth=mtp_depth
    )
    model, samples, length = DeepSeekV3(c), 2, 16
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)

    def step() -> None:
        losses = model(torch.randint(c.vocab_size, (samples, length + 1)))
        (losses.lm + losses.mtp + losses.balance).backward()

    found = counted(step)
    core = c.n_heads * (c.d_head + c.d_rope + c.d_v) * length
    weights = samples * length * (token_flops(c, length) - 3 * core * (c.n_layers + mtp_depth))
    if mtp_depth:  # a sample's last position has nothing for it to predict, which the closed form leaves out of account
        main = c.model_copy(update={"mtp_depth": 0})
        weights -= samples * (token_flops(c, length) - token_flops(main, length) - 3 * core)
    assert found["aten.mm"] + found["aten.addmm_"] == weights


def test_attention_counts_the_half_that_is_seen() -> None:
    c = ModelConfig.from_preset("demo")
    length = 64
    q, k = (torch.randn(1, c.n_heads, length, c.d_head + c.d_rope, requires_grad=True) for _ in range(2))
    v = torch.randn(1, c.n_heads, length, c.d_v, requires_grad=True)
    seen = counted(lambda: ((q @ k.transpose(2, 3)) @ v).sum().backward())["aten.bmm"]
    causal = 3 * c.n_heads * (c.d_head + c.d_rope + c.d_v) * length * length
    assert causal == seen / 2
