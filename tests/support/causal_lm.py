"""A causal language model of `transformers` as a workload, by its config."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["Causal"]


class Causal(TorchWorkload):
    class Config(TorchWorkload.Config):
        model: dict[str, Any]
        begins_from: str | None = None

    def build_model(self, config: Any) -> nn.Module:
        kind = transformers.AutoConfig.for_model(**config.model)
        return transformers.AutoModelForCausalLM.from_config(kind)

    def weights(self, config: Any) -> str | None:
        return config.begins_from

    def dataset(self, config: Any) -> torch.Tensor:
        return torch.arange(64).view(8, 8) % 32

    def loss(self, model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        logits = model(batch).logits[:, :-1].flatten(0, 1)
        return nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum"), batch[:, 1:].numel()
