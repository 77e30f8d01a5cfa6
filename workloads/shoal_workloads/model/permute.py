"""Rows to experts and back, as gathers in both directions: no scatter-add, so quick on CPU and deterministic.

Shapes: N tokens, K experts a token, R = N*K rows in expert order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["Routes", "gather_rows", "routes_of", "spread", "unspread"]


class Routes(NamedTuple):
    """Who goes where. order: (R,), the slot (token * K + choice) of each row in expert order; inverse: (R,), the row of
    each slot; counts: (E,) rows of each expert; choices: K."""

    order: torch.Tensor
    inverse: torch.Tensor
    counts: torch.Tensor
    choices: int


def routes_of(experts: torch.Tensor, counts: torch.Tensor, choices: int) -> Routes:
    """experts: (R,), the expert of every slot; counts: (E,), how often each occurs; choices: slots a token."""
    order = experts.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return Routes(order, inverse, counts, choices)


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


def spread(x: torch.Tensor, routes: Routes) -> torch.Tensor:
    """Copy each token's row to its slots in expert order. x: (N, D) -> (R, D)."""
    if routes.choices == 1:
        return gather_rows(x, routes.order, routes.inverse)
    return _Spread.apply(x, routes.order, routes.inverse, routes.choices)


def unspread(y: torch.Tensor, routes: Routes) -> torch.Tensor:
    """Sum each token's slots. y: (R, D) in expert order -> (N, D)."""
    slots = gather_rows(y, routes.inverse, routes.order)
    return slots if routes.choices == 1 else slots.unflatten(0, (-1, routes.choices)).sum(dim=1)
