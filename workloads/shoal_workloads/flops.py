"""How many FLOPs training takes, in closed form, without building the model."""

from __future__ import annotations

from shoal_workloads.model.config import ModelConfig
from shoal_workloads.parallel.schedule.balance import head_flops, layer_flops

__all__ = ["token_flops"]


def token_flops(config: ModelConfig, seq_len: int) -> float:
    """FLOPs of a token, forward and backward, in samples of `seq_len`: 6 a weight that it meets, MTP modules and the
    output head among them, and causal attention over the half of the sample that it sees on average. What is computed
    twice to save memory does not count."""
    layers = sum(layer_flops(config, layer, seq_len) for layer in range(config.n_layers))
    return 3.0 * (layers + head_flops(config, seq_len))
