"""Rows to experts and back, as gathers in both directions: no scatter-add, so quick on CPU and deterministic.

Shapes: N tokens, K experts a token, R rows: N*K in expert order, or as many as a `Fan` has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

__all__ = [
    "Fan",
    "Routes",
    "counts_of",
    "fan_in",
    "fan_of",
    "fan_out",
    "gather_rows",
    "routes_of",
    "spread",
    "unspread",
]


class Routes(NamedTuple):
    """Who goes where. order: (R,), the choice (token * K + k) of each row in expert order; inverse: (R,), the row of
    each choice; counts: (E,) rows of each expert; choices: K, of a token."""

    order: torch.Tensor
    inverse: torch.Tensor
    counts: torch.Tensor
    choices: int


def counts_of(index: torch.Tensor, n: int) -> torch.Tensor:
    """How often each of 0..n-1 occurs in `index` (R,) int64: (n,) int64. `bincount` says the same, but on a GPU it asks
    for the largest first, and the host waits for that."""
    return index.new_zeros(n).scatter_add_(0, index, torch.ones_like(index))


def routes_of(experts: torch.Tensor, counts: torch.Tensor, choices: int) -> Routes:
    """experts: (R,), the expert of every choice; counts: (E,), how often each occurs; choices: K."""
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
    """Copy each token's row to its choices in expert order. x: (N, D) -> (R, D)."""
    if routes.choices == 1:
        return gather_rows(x, routes.order, routes.inverse)
    return _Spread.apply(x, routes.order, routes.inverse, routes.choices)


def unspread(y: torch.Tensor, routes: Routes) -> torch.Tensor:
    """Sum each token's choices. y: (R, D) in expert order -> (N, D)."""
    chosen = gather_rows(y, routes.inverse, routes.order)
    return chosen if routes.choices == 1 else chosen.unflatten(0, (-1, routes.choices)).sum(dim=1)


class Fan(NamedTuple):
    """Copies of tokens, not equally many of each. source: (R,), the token of each copy; order: (R,), the copies token
    after token; first: (N,), where each token's begin in `order`."""

    source: torch.Tensor
    order: torch.Tensor
    first: torch.Tensor


def fan_of(source: torch.Tensor, tokens: int) -> Fan:
    """source: (R,), the token of each copy, of `tokens` tokens."""
    counts = counts_of(source, tokens)
    return Fan(source, source.argsort(stable=True), counts.cumsum(0) - counts)


def _sum_copies(y: torch.Tensor, order: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    return F.embedding_bag(order, y, first, mode="sum")


class _FanOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, fan: Fan) -> torch.Tensor:
        ctx.save_for_backward(fan.order, fan.first)
        return x.index_select(0, fan.source)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _sum_copies(grads[0].contiguous(), *ctx.saved_tensors), None


class _FanIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, fan: Fan) -> torch.Tensor:
        ctx.save_for_backward(fan.source)
        return _sum_copies(y, fan.order, fan.first)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (source,) = ctx.saved_tensors
        return grads[0].index_select(0, source), None


def fan_out(x: torch.Tensor, fan: Fan) -> torch.Tensor:
    """Copy each token's row to its copies. x: (N, D) -> (R, D)."""
    return _FanOut.apply(x, fan)


def fan_in(y: torch.Tensor, fan: Fan) -> torch.Tensor:
    """Sum each token's copies. y: (R, D) -> (N, D)."""
    return _FanIn.apply(y, fan)
