"""What a layer keeps for backward, counted tensor by tensor, is what the formula says, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal_workloads.activations import layer_bytes
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import Block
from shoal_workloads.model.presets import from_dial
from shoal_workloads.model.recompute import Recomputed
from shoal_workloads.model.rope import rope_table


class Meter:
    """Adds up the storages that autograd keeps, but for those of `known`."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.kept: dict[int, torch.UntypedStorage] = {}

    def __call__(self, packed: Any) -> Any:
        if isinstance(packed, torch.Tensor) and packed.untyped_storage().data_ptr() not in self.known:
            self.kept[packed.untyped_storage().data_ptr()] = packed.untyped_storage()
        return packed

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.kept.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("d_q", [24, None])
def test_a_layer_keeps_what_the_formula_says(
    monkeypatch: pytest.MonkeyPatch, d_q: int | None, dense: bool, recompute: bool
) -> None:
    config = ModelConfig.model_validate(from_dial(64, 2, 8) | {"d_q": d_q, "d_v": 24})
    torch.manual_seed(0)
    block = Block(config, None, dense=dense)
    block.recompute = recompute
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(0.0, 0.1)
    sequences, length = 3, 50
    x = torch.randn(sequences, length, config.d_model, requires_grad=True)
    rope = rope_table(config, length, x.device)
    meter = Meter([*block.parameters(), *block.buffers(), rope])
    pack = Recomputed._pack
    monkeypatch.setattr(Recomputed, "_pack", lambda self, tensor: meter(pack(self, tensor)))
    with torch.autograd.graph.saved_tensors_hooks(meter, lambda packed: packed):
        y, _, balance = block(x, rope)
    expected = layer_bytes(config, sequences, length, dense=dense, recompute=recompute, width=4)
    if recompute and d_q is None:  # a full-rank query is held by the recipe of the heads, which the meter does not see
        expected -= 4 * sequences * length * config.n_heads * (config.d_head + config.d_rope)
    assert meter.bytes == expected
    (y.sum() + (0 if balance is None else balance)).backward()
    assert x.grad is not None


def test_recomputing_saves_what_the_report_says_it_does() -> None:
    """At V3's widths and in bf16: a MoE layer's share that norms and up-projections are, of what they leave."""
    config = ModelConfig.from_preset("deepseek-v3")
    all_of_it, less = (layer_bytes(config, 1, 4096, dense=False, recompute=r) for r in (False, True))
    assert all_of_it - less == 4096 * 2 * (2 * 7168 + 512 + 1536 + 128 * (128 + 64 + 128 + 128))
