"""Rows to experts and back, as gathers in both directions: no scatter-add, so quick on CPU and deterministic.

Shapes: N tokens, K experts a token, R = N*K rows in expert order.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["gather_rows", "spread", "unspread"]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, k: int) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        back = grads[0].index_select(0, inverse)
        return back.unflatten(0, (-1, ctx.k)).sum(dim=1), None, None, None


def gather_rows(x: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """x[index], where `index` is a permutation of the rows and `inverse` its inverse."""
    return _Gather.apply(x, index, inverse)


def spread(x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, k: int) -> torch.Tensor:
    """Copy each token's row to its k slots in expert order. x: (N, D); order, inverse: (N*k,) -> (N*k, D)."""
    return _Spread.apply(x, order, inverse, k)


def unspread(y: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, k: int) -> torch.Tensor:
    """Sum each token's k slots. y: (N*k, D) in expert order -> (N, D)."""
    return gather_rows(y, inverse, order).unflatten(0, (-1, k)).sum(dim=1)
