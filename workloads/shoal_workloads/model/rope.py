"""Rotary position embedding on the decoupled part of queries and keys, interleaved pairs."""

from __future__ import annotations

import torch

__all__ = ["rope_apply", "rope_table"]


def rope_table(length: int, width: int, theta: float, device: torch.device) -> torch.Tensor:
    """The rotations of positions 0..length-1. Returns (length, width/2, 2): cosine and sine, float32."""
    inverse = theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float64), inverse)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def rope_apply(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn pairs (2i, 2i+1) of the last dimension. x: (B, T, H, R); table: (T, R/2, 2). Computed in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.view_as_complex(table).unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
