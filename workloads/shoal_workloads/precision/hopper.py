"""FP8 products on Hopper GPUs: the numerics of `EmulatedFp8`, on the tensor cores.

Dense layers multiply through torch's blockwise `scaled_mm` where it can (see `blockwise`); it has no grouped form for
these scales, so experts, and shapes that it would pad, go through Triton kernels (see `kernels`), which scale, too.
Shapes: as in `products`.
"""

from __future__ import annotations

import torch

from shoal_workloads.precision import blockwise
from shoal_workloads.precision.fp8 import EmulatedFp8, dequantize_tiles
from shoal_workloads.precision.kernels import (
    grouped_product,
    grouped_weight_product,
    quantize_rows,
    quantize_tiles,
)
from shoal_workloads.precision.products import Cached, Role

__all__ = ["HopperFp8"]


class HopperFp8(EmulatedFp8):
    """What is cached is what the emulation caches; only the products differ. `scaled_mm`: whether dense products go
    through torch."""

    name = "fp8-hopper"

    def __init__(self, *, scaled_mm: bool) -> None:
        super().__init__()
        self.scaled_mm = scaled_mm

    def cache(self, x: torch.Tensor, role: Role = "activation") -> Cached:
        """As the emulation, in one pass."""
        return super().cache(x, role) if role == "attention" else quantize_tiles(x, power_of_2=role == "dispatched")

    def fprop(self, kept: Cached, w: torch.Tensor, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Tiles times blocks."""
        codes, scale = kept
        if codes.dtype != torch.float8_e4m3fn:
            codes, scale = quantize_tiles(dequantize_tiles(codes, scale), power_of_2=True)
        return self._product((codes, scale), self.blocks(w), ends, dtype)

    def dgrad(self, dy: torch.Tensor, w: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
        """Tiles of the gradient times blocks."""
        codes, scale = self.blocks(w)  # blocks are square: those of the transpose are their transpose
        turned = codes.view(torch.uint8).transpose(-2, -1).contiguous().view(codes.dtype)
        return self._product(quantize_tiles(dy), (turned, scale.transpose(-2, -1).contiguous()), ends, dy.dtype)

    def wgrad(self, dy: torch.Tensor, kept: Cached, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Both regrouped in tiles of 128 rows of one expert, the last one filled up with zeros."""
        where = _one_group(dy) if ends is None else ends
        y, x = quantize_rows(dy, where), quantize_rows(dequantize_tiles(*kept), where)
        if ends is None and self.scaled_mm and blockwise.fits(len(y[0]), y[0].shape[1], len(x[0])):
            return blockwise.times_tiles(y, x).multiply(dtype)
        out = grouped_weight_product(y, x, where, dtype)
        return out[0] if ends is None else out

    def _product(self, x: Cached, w: Cached, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """x: codes (R, K) and scales; w: codes (N, K) or (E, N, K) and scales, contracted over K -> (R, N)."""
        codes, blocks = w
        if ends is None and self.scaled_mm and blockwise.fits(len(x[0]), x[0].shape[1], len(codes)):
            return blockwise.times_blocks(x, (codes, blocks)).multiply(dtype)
        if ends is None:
            return grouped_product((x[0], x[1]), (codes.unsqueeze(0), blocks.unsqueeze(0)), _one_group(x[0]), dtype)
        return grouped_product((x[0], x[1]), (codes, blocks), ends, dtype)


def _one_group(x: torch.Tensor) -> torch.Tensor:
    return torch.full((1,), x.shape[0], dtype=torch.int32, device=x.device)  # made there: a copy would wait
