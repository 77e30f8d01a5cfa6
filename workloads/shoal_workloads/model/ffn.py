"""SwiGLU feed-forward networks: dense, also used as the shared expert, and the routed experts of a layer.

Shapes: N tokens, K experts a token, R = N*K rows sorted by expert, D width, M hidden width, E experts held by this
worker.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from shoal_workloads.model.ffn_blocks import swiglu_blocks
from shoal_workloads.model.linear import Linear
from shoal_workloads.model.permute import Routes, gather_rows, spread, unspread
from shoal_workloads.model.recompute import Keep, at_once
from shoal_workloads.precision.linear import swiglu_ffn
from shoal_workloads.precision.products import Products

__all__ = ["EVERYTHING", "Experts", "SwiGLU"]

EVERYTHING = Keep()


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix, gate first, for one product instead of two."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(d_model, 2 * d_hidden)
        self.down = Linear(d_hidden, d_model)
        self.products = Products()

    def forward(self, x: torch.Tensor, keep: Keep = EVERYTHING) -> torch.Tensor:
        """x: (..., D) -> (..., D)."""
        gate_up, down = self.gate_up.weight.to(x.dtype), self.down.weight.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        if self.products.in_blocks(x):
            return swiglu_blocks(rows, gate_up.unsqueeze(0), down.unsqueeze(0), keep_inner=keep.inner).view_as(x)
        return swiglu_ffn(rows, gate_up, down, self.products, keep_inner=keep.inner, raw=keep.raw).view_as(x)


class Experts(nn.Module):
    """E SwiGLU experts. `gate_up`: (E, 2M, D), gate first; `down`: (E, D, M)."""

    def __init__(self, n_experts: int, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.empty(n_experts, d_model, d_hidden))
        self.products = Products()
        self.tap: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = lambda *weights: weights
        """gate_up, down -> the same, for one of several sources of rows: it sees what their gradients get from it."""

    def forward(
        self, x: torch.Tensor, gates: torch.Tensor, routes: Routes | list[Routes], keep: Keep = EVERYTHING
    ) -> torch.Tensor:
        """x: (N, D); gates: (R,), token after token -> (N, D), the outputs of each token's experts weighted and added.
        Several routes: of rows (R, D), one a choice, of several sources, one after the other; what comes of the rows of
        one does not hang on the others.

        The gate multiplies the hidden activation: the down-projection is linear, and its output need not be kept. Nor
        need copies of x in the order of the experts be: `keep.x` makes x once more, none: x is kept."""
        gate_up, down = self.gate_up.to(x.dtype), self.down.to(x.dtype)
        if isinstance(routes, Routes):
            return self._through(gate_up, down, x, gates, routes, keep)
        sizes = [len(of.order) for of in routes]
        made = []
        for rows, mine, of in zip(x.split(sizes), gates.split(sizes), routes, strict=True):
            made.append(self._through(*self.tap(gate_up, down), rows, mine, of, keep))
        return torch.cat(made)

    def _through(
        self,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        x: torch.Tensor,
        gates: torch.Tensor,
        routes: Routes,
        keep: Keep,
    ) -> torch.Tensor:
        if self.products.in_blocks(x):
            x = x if keep.x is None else keep.again(lambda: x, keep.x)
            return swiglu_blocks(x, gate_up, down, gates, routes, keep_inner=keep.inner)
        scale = gather_rows(gates, routes.order, routes.inverse)
        ends = routes.counts.cumsum(0, dtype=torch.int32)
        source = keep.x
        if source is None:
            rows = spread(x, routes)
        else:
            rows = keep.again(lambda: spread(x, routes), lambda: spread(source(), routes))
        raw = source is not None and keep.again is not at_once
        kept = {"keep_inner": keep.inner, "raw": raw}
        y = swiglu_ffn(rows, gate_up, down, self.products, scale=scale, ends=ends, **kept)
        return unspread(y, routes)
