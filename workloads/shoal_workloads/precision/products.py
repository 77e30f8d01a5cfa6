"""The three products of a linear layer, plain or over rows grouped by expert, in one number format.

With y = x w^T: fprop makes y, dgrad dx = dy w, wgrad dw = dy^T x. Shapes: R rows, I inputs, O outputs, E experts;
w: (O, I), or (E, O, I) with `ends` (E,) int32, the end of each expert's rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F

__all__ = ["Cached", "Products", "Role", "add_product", "multiply", "multiply_into", "widened"]

Cached = tuple[torch.Tensor, ...]
Role = Literal["activation", "dispatched", "attention"]


@cache
def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware. Where it does not, widening to float32 is three times faster
    than letting the kernels emulate it, and rounds the same products once."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def widened(x: torch.Tensor) -> torch.Tensor:
    """x in the type it is multiplied in: float32 where the device has no products of x's own."""
    return x.float() if x.device.type == "cpu" and x.dtype == torch.bfloat16 and not _cpu_has_bf16() else x


class Products:
    """Products in the type of their operands, accumulated in float32. The base of the FP8 back ends."""

    name = "plain"
    dispatches_fp8 = False  # whether rows travel to experts in FP8

    def in_blocks(self, x: torch.Tensor) -> bool:
        """Whether a feed-forward network of these products is done block by block in the cache (see `blocks`)."""
        return x.device.type == "cpu" and not self.dispatches_fp8

    def settle(self, weights: Iterable[torch.Tensor]) -> None:
        """Take `weights` to stay as they are until the next call, however often they are multiplied with."""

    def cache(self, x: torch.Tensor, role: Role = "activation") -> Cached:
        """What is kept of a linear layer's input x (R, I) between forward and backward. `role`: where it comes from,
        since FP8 treats what was dispatched to experts and what attention puts out differently."""
        return (x,)

    def restore(self, kept: Cached, dtype: torch.dtype) -> torch.Tensor:
        """The tensor that was cached, as good as it was kept."""
        return kept[0]

    def fprop(self, kept: Cached, w: torch.Tensor, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """kept: the cached x (R, I) -> y (R, O) in `dtype`."""
        return multiply(kept[0], w.transpose(-2, -1), ends, dtype)

    def dgrad(self, dy: torch.Tensor, w: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
        """dy: (R, O) -> dx (R, I), in dy's type."""
        return multiply(dy, w, ends, dy.dtype)

    def wgrad(self, dy: torch.Tensor, kept: Cached, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """dy: (R, O), kept: the cached x -> dw (O, I) or (E, O, I), in `dtype`."""
        return multiply(dy.T, kept[0], ends, dtype)


def multiply(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """a @ b for each group. a: (R, K) and b: (E, K, N) -> (R, N); a: (M, R) and b: (R, N), grouped by R -> (E, M, N);
    without `ends` the plain product of two matrices."""
    a = widened(a)
    if ends is None:
        return (a @ b.to(a.dtype)).to(dtype)
    return F.grouped_mm(a, b.to(a.dtype), offs=ends).to(dtype)


def multiply_into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """out = a @ b, in the type that a and b share."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """out += a @ b, in the type that a and b share."""
    if out.dtype == a.dtype:
        out.addmm_(a, b)
    else:
        out += a @ b
