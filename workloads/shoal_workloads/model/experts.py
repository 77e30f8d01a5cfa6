"""The routed experts of one layer as grouped products over rows sorted by expert.

Shapes: R rows, D width, M hidden width, E experts held by this worker.
"""

from __future__ import annotations

import torch
from torch import nn

from shoal_workloads.precision.linear import swiglu_ffn
from shoal_workloads.precision.products import Products

__all__ = ["Experts"]


class Experts(nn.Module):
    """E SwiGLU experts. `gate_up`: (E, 2M, D), gate first; `down`: (E, D, M)."""

    def __init__(self, n_experts: int, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.empty(n_experts, d_model, d_hidden))
        self.products = Products()

    def forward(self, x: torch.Tensor, gates: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """x: (R, D) sorted by expert; gates: (R,); counts: (E,) rows of each expert, adding up to R -> (R, D).

        The gate multiplies the hidden activation: the down-projection is linear, and its output need not be kept."""
        ends = counts.cumsum(0, dtype=torch.int32)
        gate_up, down = self.gate_up.to(x.dtype), self.down.to(x.dtype)
        return swiglu_ffn(x, gate_up, down, self.products, scale=gates, ends=ends)
