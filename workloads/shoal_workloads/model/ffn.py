"""The dense SwiGLU feed-forward layer, also used as the shared expert."""

from __future__ import annotations

import torch
from torch import nn

from shoal_workloads.model.ffn_blocks import swiglu_blocks
from shoal_workloads.model.linear import Linear
from shoal_workloads.precision.linear import swiglu_ffn
from shoal_workloads.precision.products import Products

__all__ = ["SwiGLU"]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix, gate first, for one product instead of two."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(d_model, 2 * d_hidden)
        self.down = Linear(d_hidden, d_model)
        self.products = Products()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., D) -> (..., D)."""
        gate_up, down = self.gate_up.weight.to(x.dtype), self.down.weight.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        if self.products.in_blocks(x):
            return swiglu_blocks(rows, gate_up.unsqueeze(0), down.unsqueeze(0)).view_as(x)
        return swiglu_ffn(rows, gate_up, down, self.products).view_as(x)
