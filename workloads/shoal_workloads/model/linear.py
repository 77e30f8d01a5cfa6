"""The one linear layer of the model: no bias, its weight cast to the activations' type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Linear"]


class Linear(nn.Module):
    """y = x W^T. The master weight is float32; where FSDP has cast it already, the cast here costs nothing."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., d_in) -> (..., d_out), in x's type."""
        return F.linear(x, self.weight.to(x.dtype))
