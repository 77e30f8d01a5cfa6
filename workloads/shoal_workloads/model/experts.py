"""The routed experts of one layer as grouped products over rows sorted by expert.

Shapes: R rows, D width, M hidden width, E experts held by this worker.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Experts"]


class Experts(nn.Module):
    """E SwiGLU experts. `gate_up`: (E, 2M, D), gate first; `down`: (E, D, M)."""

    def __init__(self, n_experts: int, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.empty(n_experts, d_model, d_hidden))

    def forward(self, x: torch.Tensor, gates: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """x: (R, D) sorted by expert; gates: (R,); counts: (E,) rows of each expert, adding up to R -> (R, D).

        The gate multiplies the hidden activation: the down-projection is linear, and its output need not be kept."""
        ends = counts.cumsum(0, dtype=torch.int32)
        gate_up, down = self.gate_up.to(x.dtype), self.down.to(x.dtype)
        gate, up = F.grouped_mm(x, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        hidden = F.silu(gate) * up * gates.unsqueeze(1).to(x.dtype)
        return F.grouped_mm(hidden, down.transpose(1, 2), offs=ends)
