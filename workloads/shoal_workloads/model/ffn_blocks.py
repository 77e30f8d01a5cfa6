"""SwiGLU feed-forward networks on a CPU, a block of one expert's rows at a time.

What a block makes stays in the cache, rows are gathered to experts and summed back within the loop, and no tensor of
all rows is made but what backward needs. Shapes: N tokens, K experts a token, R = N*K rows sorted by expert, D width,
M hidden width, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from shoal_workloads.model.permute import Routes
from shoal_workloads.precision.products import add_product, multiply_into, widened
from shoal_workloads.precision.weight_grads import are_waiting, weight_grads

__all__ = ["ROWS", "swiglu_blocks"]

ROWS = 512  # of a block: its hidden activations and an expert's weights fit a core's cache at the widths of a laptop


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        gates: torch.Tensor | None,
        routes: Routes | None,
        keep_inner: bool,
    ) -> torch.Tensor:
        rows, hidden = len(x) if routes is None else len(routes.order), down.shape[2]
        inner = x.new_empty(rows if keep_inner else 0, 2 * hidden)
        out = x.new_empty(rows, x.shape[1])
        tokens, scale = _sources(routes, gates)
        for expert, blocks in _blocks(rows, routes):
            to_inner, to_out = widened(gate_up[expert]).T, widened(down[expert]).T
            for block in blocks:
                inner_block = inner[block] if keep_inner else x.new_empty(block.stop - block.start, 2 * hidden)
                multiply_into(inner_block, widened(_take(x, tokens, block)), to_inner)
                _, activated = _activate(widened(inner_block))
                if scale is not None:
                    activated *= scale[block]
                multiply_into(out[block], activated, to_out)
        indices = () if routes is None else routes[:3]
        ctx.save_for_backward(x, gate_up, down, gates, inner, *indices)
        ctx.choices, ctx.keep_inner = 1 if routes is None else routes.choices, keep_inner
        return out if routes is None else _combine(out, routes)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, gate_up, down, gates, kept, *rest = ctx.saved_tensors
        x = saved.detach()  # gradients that wait must not hold what x was made of
        routes, dy = Routes(rest[0], rest[1], rest[2], ctx.choices) if rest else None, grads[0].contiguous()
        tokens, scale = _sources(routes, gates)
        inner = kept if ctx.keep_inner else _inner(x, gate_up, tokens, routes)
        d_x = x.new_empty(len(inner), x.shape[1])
        later = are_waiting()
        d_weights = None if later else _zeros_for(gate_up, down)
        d_inners = torch.empty_like(inner) if later else None  # for the weights' gradients
        d_scale = None if scale is None else torch.empty_like(scale)
        hidden = down.shape[2]
        for expert, blocks in _blocks(len(inner), routes):
            from_inner, from_out = widened(gate_up[expert]), widened(down[expert])
            for block in blocks:
                dy_block, inner_block = widened(_take(dy, tokens, block)), widened(inner[block])
                silu, activated = _activate(inner_block)
                d_hidden = dy_block @ from_out
                if scale is not None and d_scale is not None:
                    torch.sum(d_hidden * activated, dim=1, keepdim=True, out=d_scale[block])
                    d_hidden *= scale[block]
                    activated *= scale[block]
                d_inner = torch.empty_like(inner_block)
                torch.mul(d_hidden, silu, out=d_inner[:, hidden:])
                gate, up = inner_block[:, :hidden], inner_block[:, hidden:]
                torch.ops.aten.silu_backward.grad_input(d_hidden.mul_(up), gate, grad_input=d_inner[:, :hidden])
                if d_weights is not None:
                    _add_block(d_weights, expert, dy_block, activated, d_inner, widened(_take(x, tokens, block)))
                if d_inners is not None:
                    d_inners[block] = d_inner
                multiply_into(d_x[block], d_inner, from_inner)

        def weights() -> tuple[torch.Tensor, ...]:
            found = d_weights
            if found is None:
                assert d_inners is not None
                found = _zeros_for(gate_up, down)
                for expert, blocks in _blocks(len(inner), routes):
                    for block in blocks:
                        _, activated = _activate(widened(inner[block]))
                        if scale is not None:
                            activated *= scale[block]
                        dy_block, rows = widened(_take(dy, tokens, block)), widened(_take(x, tokens, block))
                        _add_block(found, expert, dy_block, activated, widened(d_inners[block]), rows)
            return found[0].to(gate_up.dtype), found[1].to(down.dtype)

        d_gates = None if d_scale is None or routes is None else d_scale.squeeze(1)[routes.inverse]
        d_x = d_x if routes is None else _combine(d_x, routes)
        return d_x, *weight_grads((gate_up, down), weights), d_gates, None, None


def _inner(x: torch.Tensor, gate_up: torch.Tensor, tokens: torch.Tensor | None, routes: Routes | None) -> torch.Tensor:
    """The input of the activation, (R, 2M), block by block as in forward: the same to the bit."""
    inner = x.new_empty(len(x) if routes is None else len(routes.order), gate_up.shape[1])
    for expert, blocks in _blocks(len(inner), routes):
        to_inner = widened(gate_up[expert]).T
        for block in blocks:
            multiply_into(inner[block], widened(_take(x, tokens, block)), to_inner)
    return inner


def _zeros_for(*weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the gradients of `weights` are summed in."""
    return tuple(torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights)


def _add_block(
    d_weights: tuple[torch.Tensor, ...],
    expert: int,
    dy: torch.Tensor,
    activated: torch.Tensor,
    d_inner: torch.Tensor,
    x: torch.Tensor,
) -> None:
    """What a block of rows adds to the gradients of its expert's weights."""
    d_gate_up, d_down = d_weights
    add_product(d_down[expert], dy.T, activated)
    add_product(d_gate_up[expert], d_inner.T, x)


def _blocks(rows: int, routes: Routes | None) -> Iterator[tuple[int, list[slice]]]:
    """Every expert that has rows, with their blocks of at most ROWS."""
    end = 0
    for expert, count in enumerate([rows] if routes is None else routes.counts.tolist()):
        start, end = end, end + count
        if count:
            yield expert, [slice(first, min(first + ROWS, end)) for first in range(start, end, ROWS)]


def _sources(routes: Routes | None, gates: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The token of every row (R,), and its gate as a column (R, 1)."""
    if routes is None or gates is None:
        return None, None
    return routes.order // routes.choices, gates[routes.order].unsqueeze(1)


def _combine(rows: torch.Tensor, routes: Routes) -> torch.Tensor:
    """Sum the rows of each token. rows: (R, D) in expert order -> (N, D)."""
    if routes.choices == 1:
        return rows.index_select(0, routes.inverse)
    return F.embedding_bag(routes.inverse.view(-1, routes.choices), rows, mode="sum")


def _take(x: torch.Tensor, tokens: torch.Tensor | None, block: slice) -> torch.Tensor:
    return x[block] if tokens is None else x.index_select(0, tokens[block])


def _activate(inner: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(gate), and silu(gate) * up. inner: (rows, 2M) -> two of (rows, M)."""
    gate, up = inner.chunk(2, dim=1)
    silu = F.silu(gate)
    return silu, silu * up


def swiglu_blocks(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gates: torch.Tensor | None = None,
    routes: Routes | None = None,
    *,
    keep_inner: bool = True,
) -> torch.Tensor:
    """Each token through its experts, whose outputs are added up with the gates as weights.

    x: (N, D); gate_up: (E, 2M, D), gate first; down: (E, D, M); gates: (R,) by choice -> (N, D). Without `routes` there
    is one expert for all rows. In x's type; gradients of the weights are summed in float32. `keep_inner`: what gate and
    up are is kept for backward, not made again."""
    return _Blocks.apply(x, gate_up, down, gates, routes, keep_inner)
