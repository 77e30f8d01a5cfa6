"""The closed form equals the built model and the published figures, to the unit."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.model.presets import PRESETS
from shoal_workloads.params import count_parameters


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_closed_form_equals_the_built_model(preset: str) -> None:
    config = ModelConfig.from_preset(preset)
    count = count_parameters(config)
    with torch.device("meta"):
        model = DeepSeekV3(config)
    mtp = sum(p.numel() for p in model.mtp.parameters())
    assert mtp == count.mtp
    assert sum(p.numel() for p in model.parameters()) - mtp == count.total
    biases = sum(b.numel() for name, b in model.named_buffers() if not name.startswith("mtp"))
    assert biases == count.router_biases


def test_published_figures() -> None:
    v3 = count_parameters(ModelConfig.from_preset("deepseek-v3"))
    assert (v3.attention, v3.norms, v3.expert) == (187_105_280, 16_384, 44_040_192)
    assert (v3.moe, v3.moe_active, v3.dense_ffn) == (11_320_164_352, 398_196_736, 396_361_728)
    assert (v3.embedding, v3.total, v3.mtp) == (926_679_040, 671_026_404_352, 11_610_067_968)
    assert v3.total + v3.router_biases == 671_026_419_200
    assert v3.active == 37_552_282_624
    assert count_parameters(ModelConfig.from_preset("v3-small-16b")).total == 15_706_484_224
    assert count_parameters(ModelConfig.from_preset("v3-large-230b")).total == 228_748_416_000


@pytest.mark.parametrize(("preset", "millions"), [("laptop-1m", 1), ("laptop-10m", 10), ("laptop-100m", 100)])
def test_laptop_presets_are_as_large_as_they_say(preset: str, millions: int) -> None:
    count = count_parameters(ModelConfig.from_preset(preset))
    assert count.total == pytest.approx(millions * 1e6, rel=0.2)


@pytest.mark.parametrize("setting", ["n_layers", "n_experts", "mtp_depth"])
def test_a_model_that_would_be_counted_for_ever_is_refused(setting: str) -> None:
    with pytest.raises(ValidationError, match=f"{setting}\n.*less than or equal to"):
        ModelConfig.model_validate({"preset": "laptop-1m", setting: 10**9})
