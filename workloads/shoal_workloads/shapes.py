"""What the state of a training job is made of, from its configuration alone: nothing is allocated."""

from __future__ import annotations

import torch

from shoal_workloads.config import PretrainConfig
from shoal_workloads.model.deepseek import DeepSeekV3

__all__ = ["state_of"]


def state_of(config: PretrainConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of the whole and dtype of every tensor that a checkpoint of this job holds, by name."""
    with torch.device("meta"):
        model = DeepSeekV3(config.model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    moments = "float32" if config.optim.moments == "fp32" else "bfloat16"
    kinds = {"model": "float32", "adam_m": moments, "adam_v": moments}
    if config.ema_decay:
        kinds["ema"] = "float32"
    state = {f"{kind}.{name}": (shape, dtype) for kind, dtype in kinds.items() for name, shape in shapes.items()}
    state |= {f"router_bias.{i}": ((config.model.n_experts,), "float32") for i in range(len(model.moe_layers()))}
    return state | {"guard": ((3,), "float64")}
