"""RMSNorm, before attention and FFN, at the end, and on both latents of MLA (report, section 4.2).

Shapes: W the width that is normalised, in whatever comes before it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["RMSNorm"]

ROWS = 512  # of a block


class _RMSNorm(torch.autograd.Function):
    """For CPUs, where torch's own is made of eight operations over all rows and keeps two more tensors for backward.
    Here backward goes over blocks of rows, so that what it makes stays in the cache."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
        inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        d_x = torch.empty_like(x)
        wide = weight.to(inverse.dtype)
        d_weight = torch.zeros_like(wide)
        width = x.shape[-1]
        blocks = (t.reshape(-1, t.shape[-1]).split(ROWS) for t in (x, grads[0], inverse, d_x.view(-1, width)))
        for rows, grad, scale, out in zip(*blocks, strict=True):
            unit = rows * scale
            d_weight += (grad * unit).sum(dim=0)
            d_unit = grad * wide
            mean = torch.linalg.vecdot(d_unit, unit).div_(width).unsqueeze(1)
            out.copy_(d_unit.sub_(unit.mul_(mean)).mul_(scale))
        return d_x, d_weight.to(weight.dtype), None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the mean of squares in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., W) -> the same shape and dtype."""
        if x.device.type == "cpu":
            return _RMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)
