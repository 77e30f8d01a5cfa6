"""A linear layer and a SwiGLU feed-forward network over `Products`, keeping between forward and backward as little as
the number format allows.

Shapes: R rows, I inputs, O outputs, D width, M hidden width, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from shoal_workloads.precision.products import Cached, Products, Role
from shoal_workloads.precision.weight_grads import weight_grads

__all__ = ["linear", "swiglu_ffn"]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, products: Products, role: Role, raw: bool) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        kept = products.cache(rows, role)
        ctx.save_for_backward(w, *((rows,) if raw else kept))
        ctx.products, ctx.shape, ctx.role = products, x.shape, role if raw else None
        return products.fprop(kept, w, None, x.dtype).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        w, *kept = ctx.saved_tensors
        dy = grads[0].reshape(-1, w.shape[0])
        products = ctx.products
        cached = tuple(kept) if ctx.role is None else products.cache(kept[0], ctx.role)
        dx = products.dgrad(dy, w, None).view(ctx.shape) if ctx.needs_input_grad[0] else None
        dw = _wgrad(products, dy, cached, None, w) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None, None


def _wgrad(
    products: Products, dy: torch.Tensor, kept: Cached, ends: torch.Tensor | None, w: torch.Tensor
) -> torch.Tensor | None:
    """The gradient of w, none if it is put off. A tensor that was an input knows how it was made, and so holds what
    that began with: what waits must not."""
    dtype, kept = w.dtype, tuple(part.detach() for part in kept)
    return weight_grads((w,), lambda: (products.wgrad(dy, kept, ends, dtype),))[0]


def linear(
    x: torch.Tensor, w: torch.Tensor, products: Products, role: Role = "activation", *, raw: bool = False
) -> torch.Tensor:
    """x w^T. x: (..., I); w: (O, I) -> (..., O) in x's type. `raw`: x is what is kept for backward, since others keep
    it anyway, or make it again; else what the products make of it."""
    return _Linear.apply(x, w, products, role, raw)


class _SwiGLU(torch.autograd.Function):
    """Keeps its input x and, if `keep_inner`, the input of the activation, else makes that again, too; the activation's
    output is made again in backward in any case."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        scale: torch.Tensor | None,
        ends: torch.Tensor | None,
        products: Products,
        keep_inner: bool,
        raw: bool,
    ) -> torch.Tensor:
        role: Role = "activation" if ends is None else "dispatched"
        kept = products.cache(x, role)
        inner = products.fprop(kept, gate_up, ends, x.dtype)
        hidden, _ = _activate(inner, scale)
        y = products.fprop(products.cache(hidden), down, ends, x.dtype)
        inner_kept = products.cache(inner) if keep_inner else ()
        x_kept = (x,) if raw else kept
        ctx.save_for_backward(gate_up, down, scale, ends, *x_kept, *inner_kept)
        ctx.products, ctx.dtype, ctx.count, ctx.role = products, x.dtype, len(x_kept), role if raw else None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate_up, down, scale, ends, *both = ctx.saved_tensors
        products, kept = ctx.products, tuple(both[: ctx.count])
        if ctx.role is not None:
            kept = products.cache(kept[0], ctx.role)
        inner_kept = tuple(both[ctx.count :]) or products.cache(products.fprop(kept, gate_up, ends, ctx.dtype))
        inner = products.restore(inner_kept, ctx.dtype)
        dy = grads[0].contiguous()
        d_hidden = products.dgrad(dy, down, ends)
        hidden, unscaled = _activate(inner, scale)
        d_down = _wgrad(products, dy, products.cache(hidden), ends, down)
        d_scale = None
        if scale is not None:
            d_scale = (d_hidden * unscaled).sum(dim=1, dtype=scale.dtype)
            d_hidden = d_hidden * scale.unsqueeze(1).to(d_hidden.dtype)
        del hidden, unscaled
        gate, up = inner.chunk(2, dim=1)
        half = gate.shape[1]
        d_inner = torch.empty_like(inner)
        torch.mul(d_hidden, F.silu(gate), out=d_inner[:, half:])
        torch.ops.aten.silu_backward.grad_input(d_hidden.mul_(up), gate, grad_input=d_inner[:, :half])
        del d_hidden
        d_x = products.dgrad(d_inner, gate_up, ends)
        return d_x, _wgrad(products, d_inner, kept, ends, gate_up), d_down, d_scale, None, None, None, None


def _activate(inner: torch.Tensor, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(gate) * up, scaled by rows, and before scaling. inner: (R, 2M) -> two of (R, M)."""
    gate, up = inner.chunk(2, dim=1)
    plain = F.silu(gate).mul_(up)
    return (plain, plain) if scale is None else (plain * scale.unsqueeze(1).to(plain.dtype), plain)


def swiglu_ffn(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    products: Products,
    *,
    scale: torch.Tensor | None = None,
    ends: torch.Tensor | None = None,
    keep_inner: bool = True,
    raw: bool = False,
) -> torch.Tensor:
    """scale * down(silu(gate(x)) * up(x)). x: (R, D); gate_up: (2M, D), gate first; down: (D, M); scale: (R,) or none.
    With `ends` (E,) int32, rows are grouped by expert and the weights stacked: (E, 2M, D), (E, D, M). `keep_inner`:
    what gate and up are is kept for backward, not made again. `raw`: as in `linear`."""
    return _SwiGLU.apply(x, gate_up, down, scale, ends, products, keep_inner, raw)
