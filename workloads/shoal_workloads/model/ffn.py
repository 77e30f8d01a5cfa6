"""The dense SwiGLU feed-forward layer, also used as the shared expert."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from shoal_workloads.model.linear import Linear

__all__ = ["SwiGLU"]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix, gate first, for one product instead of two."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(d_model, 2 * d_hidden)
        self.down = Linear(d_hidden, d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., D) -> (..., D)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
