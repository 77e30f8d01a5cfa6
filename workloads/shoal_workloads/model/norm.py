"""RMSNorm, before attention and FFN, at the end, and on both latents of MLA (report, section 4.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["RMSNorm"]


class _RMSNorm(torch.autograd.Function):
    """For CPUs, where torch's own is made of eight operations and keeps two more tensors for backward."""

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
        unit = x * inverse
        d_weight = (grads[0] * unit).flatten(0, -2).sum(dim=0, dtype=inverse.dtype)
        d_unit = grads[0] * weight
        mean = (d_unit * unit).mean(dim=-1, keepdim=True)
        return (d_unit - unit.mul_(mean)).mul_(inverse).to(x.dtype), d_weight.to(weight.dtype), None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the mean of squares in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., width) -> the same shape and dtype."""
        if x.device.type == "cpu":
            return _RMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)
