"""A differentiable all-to-all of rows, in the rows' own type or in FP8 with a scale for every 128 channels.

FP8 as the report has it (section 3.3.2): what is dispatched to experts travels in FP8, forward and, for gradients on
their way back to experts, backward; what is combined travels as it is. Scales are powers of two, so that scaling once
more for the product changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from shoal_workloads.precision.fp8 import dequantize_tiles, quantize_tiles

__all__ = ["all_to_all"]


def _exchange(
    x: torch.Tensor, receive: list[int], send: list[int], group: dist.ProcessGroup, fp8: bool
) -> torch.Tensor:
    if fp8:
        codes, scale = quantize_tiles(x, power_of_2=True)
        # gloo knows no FP8: its bytes travel
        arrived = _exchange(codes.view(torch.uint8), receive, send, group, False).view(codes.dtype)
        return dequantize_tiles(arrived, _exchange(scale, receive, send, group, False)).to(x.dtype)
    out = x.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        receive: list[int],
        send: list[int],
        group: dist.ProcessGroup,
        fp8: tuple[bool, bool],
    ) -> torch.Tensor:
        ctx.receive, ctx.send, ctx.group, ctx.fp8 = receive, send, group, fp8[1]
        return _exchange(x, receive, send, group, fp8[0])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        return _exchange(grads[0], ctx.send, ctx.receive, ctx.group, ctx.fp8), None, None, None, None


def all_to_all(
    x: torch.Tensor,
    receive: list[int],
    send: list[int],
    group: dist.ProcessGroup,
    *,
    fp8: tuple[bool, bool] = (False, False),
) -> torch.Tensor:
    """Send `send[j]` consecutive rows of x to rank j of `group`, receive `receive[j]` from it, in rank order.

    x: (sum(send), ...) -> (sum(receive), ...). Gradients travel the same way back. fp8: whether rows of x (R, D) and
    their gradients travel in FP8.

    Raises:
        RuntimeError: a peer is gone.
    """
    return _AllToAll.apply(x, receive, send, group, fp8)
