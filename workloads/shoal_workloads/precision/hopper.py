"""FP8 products on Hopper GPUs: the numerics of `EmulatedFp8`, on the tensor cores.

torch's blockwise `scaled_mm` has no grouped form for these scales on Hopper, and no form whose two operands are both
scaled along rows, which wgrad needs; so all three products are Triton kernels (see `kernels`), dense layers being one
group.
"""

from __future__ import annotations

import torch

from shoal_workloads.precision.fp8 import EmulatedFp8, dequantize_tiles, quantize_blocks
from shoal_workloads.precision.kernels import (
    grouped_product,
    grouped_weight_product,
    quantize_rows,
    quantize_tiles,
)
from shoal_workloads.precision.products import Cached, Role

__all__ = ["HopperFp8"]


class HopperFp8(EmulatedFp8):
    """What is cached is what the emulation caches; only the products differ."""

    name = "fp8-hopper"

    def cache(self, x: torch.Tensor, role: Role = "activation") -> Cached:
        """As the emulation, in one pass."""
        return super().cache(x, role) if role == "attention" else quantize_tiles(x, power_of_2=role == "dispatched")

    def fprop(self, kept: Cached, w: torch.Tensor, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Tiles times blocks."""
        codes, scale = kept
        if codes.dtype != torch.float8_e4m3fn:
            codes, scale = quantize_tiles(dequantize_tiles(codes, scale), power_of_2=True)
        return _product((codes, scale), w, ends, dtype)

    def dgrad(self, dy: torch.Tensor, w: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
        """Tiles of the gradient times blocks."""
        return _product(quantize_tiles(dy), w.transpose(-2, -1), ends, dy.dtype)

    def wgrad(self, dy: torch.Tensor, kept: Cached, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Both regrouped in tiles of 128 rows of one expert."""
        where = _one_group(dy) if ends is None else ends
        y, x = quantize_rows(dy, where), quantize_rows(dequantize_tiles(*kept), where)
        out = grouped_weight_product(y, x, where, dtype)
        return out[0] if ends is None else out


def _product(x: Cached, w: torch.Tensor, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """x: codes (R, K) and scales; w: (N, K) or (E, N, K), contracted over K -> (R, N)."""
    codes, blocks = quantize_blocks(w.contiguous() if w.dim() == 3 else w.contiguous().unsqueeze(0))
    where = _one_group(x[0]) if ends is None else ends
    return grouped_product((x[0], x[1]), (codes.contiguous(), blocks.contiguous()), where, dtype)


def _one_group(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([x.shape[0]], dtype=torch.int32, device=x.device)
