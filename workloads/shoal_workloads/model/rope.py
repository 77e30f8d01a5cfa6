"""Rotary position embedding on the decoupled part of queries and keys, interleaved pairs, with YaRN (arXiv 2309.00071).

Shapes: B sequences, T positions, H heads, R width of the RoPE part.
"""

from __future__ import annotations

import math

import torch

from shoal_workloads.model.config import ModelConfig, YarnConfig

__all__ = ["rope_apply", "rope_frequencies", "rope_table", "softmax_scale"]


def rope_frequencies(c: ModelConfig) -> torch.Tensor:
    """Radians a position that each pair turns: (R/2,), float64. theta^(-2i/R); under YaRN slow pairs turn slower."""
    inverse = c.rope_theta ** -(torch.arange(0, c.d_rope, 2, dtype=torch.float64) / c.d_rope)
    if c.yarn is None:
        return inverse
    low, high = (_pair_that_turns(turns, c, c.yarn) for turns in (c.yarn.beta, c.yarn.alpha))
    low, high = max(math.floor(low), 0), min(math.ceil(high), c.d_rope - 1)
    ramp = (torch.arange(c.d_rope // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)
    slow = ramp.clamp(0, 1)  # 0: left alone, 1: interpolated
    return inverse * (1 - slow) + inverse / c.yarn.factor * slow


def _pair_that_turns(turns: float, c: ModelConfig, yarn: YarnConfig) -> float:
    """The (fractional) pair that makes `turns` full turns over the original context."""
    return c.d_rope * math.log(yarn.original_length / (turns * 2 * math.pi)) / (2 * math.log(c.rope_theta))


def softmax_scale(c: ModelConfig) -> float:
    """(h+R)^-1/2, under YaRN times (0.1 ln s + 1)^2: its temperature, in one place instead of in query and key."""
    temperature = 1.0 if c.yarn is None else 0.1 * math.log(c.yarn.factor) + 1.0
    return (c.d_head + c.d_rope) ** -0.5 * temperature**2


def rope_table(c: ModelConfig, length: int, device: torch.device) -> torch.Tensor:
    """The rotations of positions 0..length-1: (T, R/2, 2), cosine and sine, float32."""
    position = torch.arange(length, dtype=torch.float64, device=device)
    angle = torch.outer(position, rope_frequencies(c).to(device))
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def rope_apply(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn pairs (2i, 2i+1) of the last dimension. x: (B, T, H, R); table: (T, R/2, 2). Computed in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.view_as_complex(table).unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
