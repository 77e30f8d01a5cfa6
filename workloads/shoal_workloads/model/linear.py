"""The one linear layer of the model: no bias, its weight cast to the activations' type.

Shapes: I inputs, O outputs; the weight is (O, I).
"""

from __future__ import annotations

import torch
from torch import nn

from shoal_workloads.precision.linear import linear
from shoal_workloads.precision.products import Products, Role

__all__ = ["Linear"]


class Linear(nn.Module):
    """y = x W^T. The master weight is float32; where FSDP has cast it already, the cast here costs nothing.

    `products`: the number format, set for the whole model by `DeepSeekV3`. `role`: where the input comes from."""

    def __init__(self, d_in: int, d_out: int, role: Role = "activation") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.products, self.role = Products(), role

    def forward(self, x: torch.Tensor, *, raw: bool = False) -> torch.Tensor:
        """x: (..., I) -> (..., O), in x's type. `raw`: see `precision.linear.linear`."""
        return linear(x, self.weight.to(x.dtype), self.products, self.role, raw=raw)
