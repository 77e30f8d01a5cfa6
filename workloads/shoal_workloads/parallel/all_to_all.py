"""A differentiable all-to-all of rows: torch's functional one has no backward for uneven splits on gloo."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

__all__ = ["all_to_all"]


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, receive: list[int], send: list[int], group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.receive, ctx.send, ctx.group = receive, send, group
        out = x.new_empty((sum(receive), *x.shape[1:]))
        dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = grads
        out = grad.new_empty((sum(ctx.send), *grad.shape[1:]))
        dist.all_to_all_single(out, grad.contiguous(), ctx.send, ctx.receive, group=ctx.group)
        return out, None, None, None


def all_to_all(x: torch.Tensor, receive: list[int], send: list[int], group: dist.ProcessGroup) -> torch.Tensor:
    """Send `send[j]` consecutive rows of x to rank j of `group`, receive `receive[j]` from it, in rank order.

    x: (sum(send), ...) -> (sum(receive), ...). Gradients travel the same way back.

    Raises:
        RuntimeError: a peer is gone.
    """
    return _AllToAll.apply(x, receive, send, group)
