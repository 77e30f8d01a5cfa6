"""Logits and gradients of random small models against `transformers`' implementation, same weights, float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from shoal_workloads.hf.config import from_hf_config, to_hf_config
from shoal_workloads.hf.names import parts_of
from shoal_workloads.hf.weights import swapped
from shoal_workloads.model.config import ModelConfig, YarnConfig
from shoal_workloads.model.deepseek import DeepSeekV3


def random_config(seed: int) -> ModelConfig:
    """A small shape with its own groups, ranks, heads, shared experts, dense layers."""
    random = np.random.default_rng(seed)

    def pick(*values: int) -> int:
        return int(random.choice(values))

    groups = pick(1, 2, 4)
    experts = groups * pick(2, 3, 4)
    kept = pick(*range(1, groups + 1))
    layers = pick(1, 2, 3)
    return ModelConfig(
        vocab_size=pick(50, 97),
        d_model=pick(16, 24, 40),
        n_layers=layers,
        n_dense=pick(*range(layers + 1)),
        n_heads=pick(1, 2, 3),
        d_head=pick(4, 8),
        d_rope=pick(2, 4, 8),
        d_v=pick(4, 8, 12),
        d_kv=pick(4, 12),
        d_q=None if pick(0, 1) else pick(8, 12),
        n_experts=experts,
        n_shared=pick(0, 1, 2) or 1,
        top_k=pick(*range(2, min(experts // groups * kept, 4) + 1)),  # with one, the gate is 1 and has no gradient
        d_expert=pick(8, 12),
        d_ffn=pick(16, 20),
        n_groups=groups,
        topk_groups=kept,
        route_scale=float(random.choice([1.0, 2.5])),
        mtp_depth=pick(1, 2),
        init_std=0.2,
        rope_theta=float(random.choice([1e2, 1e4])),
        yarn=YarnConfig(factor=4.0, original_length=32) if seed % 5 == 4 else None,
    )


def both(seed: int) -> tuple[DeepSeekV3, Any, torch.Tensor]:
    """Our model, theirs with the same weights, and tokens."""
    config = random_config(seed)
    torch.manual_seed(seed)
    ours = DeepSeekV3(config)
    with torch.no_grad():
        for p in ours.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, config.init_std)
        for moe in ours.moe_layers():
            moe.router.bias.uniform_(0.1, 0.4)  # positive: every kept s + b is over the 0.0 they mask with
    state = {name: p.detach() for name, p in ours.named_parameters()}
    state |= {f"router_bias.{i}": moe.router.bias for i, moe in enumerate(ours.moe_layers())}
    written = to_hf_config(config, max_positions=128, dtype="float32", mtp=False, eos=None)
    assert from_hf_config(written, "x").model_dump(exclude={"mtp_depth"}) == config.model_dump(exclude={"mtp_depth"})
    theirs = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**written)).float().eval()
    missing, extra = theirs.load_state_dict(fuse(config, in_their_names(config, state)), strict=False)
    assert not missing
    assert not extra
    return ours, theirs, torch.randint(config.vocab_size, (2, 24))


def in_their_names(config: ModelConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model without its MTP modules; `state`: by our names."""
    parts = [(part, state[part.ours][part.index]) for part in parts_of(config, mtp=False)]
    return {part.theirs: (swapped(found) if part.swap else found).contiguous() for part, found in parts}


def fuse(config: ModelConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts stacked, as they are in their memory and not on disk."""
    out = {name: value for name, value in state.items() if ".mlp.experts." not in name}
    for name in [n for n in state if ".mlp.experts.0.gate_proj" in n]:
        prefix = name.removesuffix(".0.gate_proj.weight")
        gate, up, down = (
            torch.stack([state[f"{prefix}.{e}.{kind}_proj.weight"] for e in range(config.n_experts)])
            for kind in ("gate", "up", "down")
        )
        out[f"{prefix}.gate_up_proj"] = torch.cat([gate, up], dim=1)
        out[f"{prefix}.down_proj"] = down
    return out


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("seed", range(24))
def test_logits_and_gradients(seed: int) -> None:
    ours, theirs, tokens = both(seed)
    assert difference(ours.logits(tokens), theirs(tokens).logits) < 1e-5

    ours(tokens, mtp=False).lm.backward()
    logits = theirs(tokens[:, :-1]).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum").backward()
    grads: dict[str, Any] = {name: p.grad for name, p in ours.named_parameters() if not name.startswith("mtp")}
    grads |= {f"router_bias.{i}": torch.zeros(ours.config.n_experts) for i in range(ours.config.n_moe)}
    translated = fuse(ours.config, in_their_names(ours.config, grads))
    compared = 0
    for name, p in theirs.named_parameters():
        if p.grad is None:
            assert name not in translated or not translated[name].any()
            continue
        assert difference(translated[name], p.grad) < 1e-5, name
        compared += 1
    assert compared > 10
