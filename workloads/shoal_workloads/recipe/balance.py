"""Auxiliary-loss-free balancing: a bias a expert, moved by the load of the whole global batch, once a step."""

from __future__ import annotations

import torch

__all__ = ["max_violation", "update_bias"]


def update_bias(bias: torch.Tensor, load: torch.Tensor, gamma: float) -> None:
    """b += gamma * sign(mean load - load), in place. bias: (E,); load: (E,) tokens routed to each expert."""
    bias.add_((load.mean() - load).sign(), alpha=gamma)


def max_violation(load: torch.Tensor) -> torch.Tensor:
    """MaxVio: how far the busiest expert lies over the mean, max(load) / mean(load) - 1. load: (..., E) -> (...)."""
    return load.amax(dim=-1) / load.mean(dim=-1).clamp_min(1e-9) - 1
