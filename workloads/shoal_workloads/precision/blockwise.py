"""Products of FP8 codes with fine-grained scales through torch's `scaled_mm`: what it asks of its operands.

It multiplies A (M, K) by B (K, N), B's columns contiguous, on Hopper with cuBLAS of CUDA 12.9 or later. K must be whole
tiles, N a multiple of 16. Scales are float32: of tiles along K for A (M, K/128) and for B (N, K/128), of blocks for B
(K/128 rounded up to a multiple of 4, N/128); all with their first index contiguous. (torch 2.13, checks in
aten/src/ATen/native/cuda/ScaledBlas.cpp; there is no grouped product with these scales.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from shoal_workloads.precision.products import Cached

__all__ = ["Arguments", "available", "fits", "times_blocks", "times_tiles"]

TILE = 128


class Arguments(NamedTuple):
    """What `torch.nn.functional.scaled_mm` is called with; the recipes by their names in `ScalingType`."""

    a: torch.Tensor
    b: torch.Tensor
    scale_a: torch.Tensor
    recipe_a: str
    scale_b: torch.Tensor
    recipe_b: str

    def multiply(self, dtype: torch.dtype) -> torch.Tensor:
        """A @ B: (M, N) in `dtype`, bfloat16 or float32; partial sums are promoted to float32 (no fast
        accumulation)."""
        return F.scaled_mm(
            self.a,
            self.b,
            self.scale_a,
            getattr(F.ScalingType, self.recipe_a),
            self.scale_b,
            getattr(F.ScalingType, self.recipe_b),
            output_dtype=dtype,
            use_fast_accum=False,
        )


def available(capability: tuple[int, int], cuda: str | None) -> bool:
    """Whether torch multiplies with these scales on a GPU of this compute capability, built for this CUDA version."""
    if cuda is None or not hasattr(F, "scaled_mm"):
        return False
    return capability[0] == 9 and tuple(int(part) for part in cuda.split(".")[:2]) >= (12, 9)


def fits(rows: int, contraction: int, outputs: int) -> bool:
    """Whether a product (rows, contraction) x (contraction, outputs) needs no padding. cuBLAS reads scales of tiles
    column by column at 16-byte addresses, hence rows by four."""
    return rows % 4 == 0 and contraction % TILE == 0 and outputs % TILE == 0


def times_blocks(x: Cached, w: Cached) -> Arguments:
    """x w^T. x: codes (R, K) in tiles, scales (R, K/128); w: codes (N, K) in blocks, scales (N/128, K/128)."""
    (codes, scale), (weight, blocks) = x, w
    tall = blocks.new_zeros(blocks.shape[0], -(-blocks.shape[1] // 4) * 4)
    tall[:, : blocks.shape[1]] = blocks
    return Arguments(codes, weight.T, _first_index_contiguous(scale), "BlockWise1x128", tall.T, "BlockWise128x128")


def times_tiles(y: Cached, x: Cached) -> Arguments:
    """y x^T. y: codes (O, K) in tiles along K, scales (K/128, O); x: codes (I, K), scales (K/128, I). wgrad, with K
    the rows of the layer's input and the scales as `kernels.quantize_rows` lays them."""
    return Arguments(y[0], x[0].T, y[1].T, "BlockWise1x128", x[1].T, "BlockWise1x128")


def _first_index_contiguous(scale: torch.Tensor) -> torch.Tensor:
    return scale.T.contiguous().T
