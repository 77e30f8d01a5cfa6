"""Cross-entropy through the output head, a block of rows at a time: the logits are never all in memory.

Shapes: N rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from shoal_workloads.precision.products import add_product, multiply_into, widened

__all__ = ["ROWS", "ROWS_ON_GPU", "head_nll"]

ROWS, ROWS_ON_GPU = 1024, 4096
"""Of a block of logits. Each block adds a whole head's gradient to what is there: on a GPU that takes as long as the
product itself where blocks are small."""


class _HeadNLL(torch.autograd.Function):
    """The gradients of hidden states and head are computed in forward, while a block's logits are at hand; backward
    scales them. The scale of every row is the same, since all rows carry the same weight in the loss."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, train: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if train else None
        d_head = torch.zeros_like(head, dtype=torch.float32) if train else None
        weight = widened(head)
        size = ROWS if hidden.device.type == "cpu" else ROWS_ON_GPU
        for start in range(0, len(targets), size):
            block, rows = slice(start, start + size), targets[start : start + size].unsqueeze(1)
            x = widened(hidden[block])
            logits = (x @ weight.T).float()
            top = logits.amax(dim=1, keepdim=True)
            picked = logits.gather(1, rows)
            logits.sub_(top).exp_()
            total = logits.sum(dim=1, keepdim=True)
            nll[block] = (total.log() + top - picked).squeeze(1)
            if d_hidden is not None and d_head is not None:
                logits.div_(total)
                logits.scatter_add_(1, rows, torch.full_like(picked, -1.0))
                d_logits = logits.to(x.dtype)
                multiply_into(d_hidden[block], d_logits, weight)
                add_product(d_head, d_logits.T, x)
        if d_hidden is not None and d_head is not None:
            ctx.save_for_backward(d_hidden, d_head.to(head.dtype))
        ctx.mark_non_differentiable(nll)
        return nll.sum(), nll

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        scale = grads[0]
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * scale.to(d_hidden.dtype), d_head * scale.to(d_head.dtype), None, None


def head_nll(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of `targets` in nats. hidden: (N, D); head: (V, D); targets: (N,) int64 -> the sum
    (differentiable) and each row's (N,), float32."""
    train = torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)
    return _HeadNLL.apply(hidden, head, targets, train)
