"""SwiGLU feed-forward networks: dense, also used as the shared expert, and the routed experts of a layer.

Shapes: N tokens, K experts a token, R = N*K rows sorted by expert, D width, M hidden width, E experts held by this
worker.
"""

from __future__ import annotations

import torch
from torch import nn

from shoal_workloads.model.ffn_blocks import swiglu_blocks
from shoal_workloads.model.linear import Linear
from shoal_workloads.model.permute import Routes, gather_rows, spread, unspread
from shoal_workloads.precision.linear import swiglu_ffn
from shoal_workloads.precision.products import Products

__all__ = ["Experts", "SwiGLU"]


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


class Experts(nn.Module):
    """E SwiGLU experts. `gate_up`: (E, 2M, D), gate first; `down`: (E, D, M)."""

    def __init__(self, n_experts: int, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.empty(n_experts, d_model, d_hidden))
        self.products = Products()

    def forward(self, x: torch.Tensor, gates: torch.Tensor, routes: Routes) -> torch.Tensor:
        """x: (N, D); gates: (R,), token after token -> (N, D), the outputs of each token's experts weighted and added.

        The gate multiplies the hidden activation: the down-projection is linear, and its output need not be kept."""
        gate_up, down = self.gate_up.to(x.dtype), self.down.to(x.dtype)
        if self.products.in_blocks(x):
            return swiglu_blocks(x, gate_up, down, gates, routes)
        scale = gather_rows(gates, routes.order, routes.inverse)
        ends = routes.counts.cumsum(0, dtype=torch.int32)
        rows = swiglu_ffn(spread(x, routes), gate_up, down, self.products, scale=scale, ends=ends)
        return unspread(rows, routes)
