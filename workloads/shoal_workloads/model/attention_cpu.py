"""MLA's attention core on a CPU, one sample and a block of queries at a time: what a block makes stays in the cache.

Only its inputs are kept for backward. Neither the keys with the shared rotated part in every head nor padded values are
ever made for the whole batch, and what lies above the diagonal is not computed, but for the block on it.

Shapes: B sequences, T positions, H heads, h width of a head without RoPE, R width of the RoPE part, v of a value head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from shoal_workloads.model.rope import rope_apply
from shoal_workloads.precision.products import widened

__all__ = ["QUERIES", "attend_in_blocks"]

QUERIES = 128  # of a block


@torch.library.custom_op("shoal::attend_in_blocks", mutates_args=())
def attend_in_blocks(
    q: torch.Tensor, kv: torch.Tensor, k_r: torch.Tensor, table: torch.Tensor, scale: float
) -> torch.Tensor:
    """Causal softmax attention with RoPE on the last R of q and on k_r, which all heads share.

    q: (B, T, H, h+R); kv: (B, T, H, h+v), key then value; k_r: (B, T, R); table: (T, R/2, 2) -> (B, T, H, v).
    An operator of its own, so that selective recomputing can keep its output instead of running it again."""
    d_head = q.shape[3] - k_r.shape[2]
    out = q.new_empty(*q.shape[:3], kv.shape[3] - d_head)
    for i in range(len(q)):
        queries, keys, values = _heads(q[i], kv[i], k_r[i], table, scale)
        for block, seen, mask in _causal_blocks(q):
            shares = _softmax(queries[:, block], keys[:, seen], mask)
            out[i, block] = torch.bmm(shares.to(values.dtype), values[:, seen]).transpose(0, 1)
    return out


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.scale = scale


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    q, kv, k_r, table = ctx.saved_tensors
    d_q, d_kv, d_k_r = torch.empty_like(q), torch.empty_like(kv), torch.empty_like(k_r)
    rotated, d_head = k_r.shape[2], q.shape[3] - k_r.shape[2]
    back = table * table.new_tensor([1.0, -1.0])  # the rotation the other way
    for i in range(len(q)):
        queries, keys, values = _heads(q[i], kv[i], k_r[i], table, ctx.scale)
        d_queries = torch.empty_like(queries)
        d_keys, d_values = (torch.zeros_like(t, dtype=torch.float32) for t in (keys, values))
        d_out = widened(grad[i]).transpose(0, 1)  # (H, T, v)
        for block, seen, mask in _causal_blocks(q):
            shares = _softmax(queries[:, block], keys[:, seen], mask)
            d_shares = torch.bmm(d_out[:, block], values[:, seen].transpose(1, 2)).float()
            d_scores = torch._softmax_backward_data(d_shares, shares, 2, torch.float32).to(keys.dtype)
            d_queries[:, block] = torch.bmm(d_scores, keys[:, seen])
            d_keys[:, seen] += torch.bmm(d_scores.transpose(1, 2), queries[:, block])
            d_values[:, seen] += torch.bmm(shares.to(keys.dtype).transpose(1, 2), d_out[:, block])
        d_queries *= ctx.scale
        d_q[i, :, :, :d_head] = d_queries[..., :d_head].transpose(0, 1)
        d_q[i, :, :, d_head:] = rope_apply(d_queries[..., d_head:].transpose(0, 1), back)
        d_kv[i, :, :, :d_head] = d_keys[..., :d_head].transpose(0, 1)
        d_kv[i, :, :, d_head:] = d_values.transpose(0, 1)
        d_k_r[i] = rope_apply(d_keys[..., d_head:].sum(dim=0).unsqueeze(1), back).view(-1, rotated)
    return d_q, d_kv, d_k_r, None, None


attend_in_blocks.register_autograd(_backward, setup_context=_keep_inputs)


def _heads(
    q: torch.Tensor, kv: torch.Tensor, k_r: torch.Tensor, table: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One sample's rotated and scaled queries, rotated keys (H, T, h+R) and values (H, T, v), in the type they are
    multiplied in. q: (T, H, h+R); kv: (T, H, h+v); k_r: (T, R)."""
    d_head = q.shape[2] - k_r.shape[1]
    q, kv, k_r = widened(q), widened(kv), widened(k_r)
    queries = q.new_empty(q.shape[1], q.shape[0], q.shape[2])
    queries[..., :d_head] = q[..., :d_head].transpose(0, 1)
    queries[..., d_head:] = rope_apply(q[..., d_head:], table).transpose(0, 1)
    keys = torch.empty_like(queries)
    keys[..., :d_head] = kv[..., :d_head].transpose(0, 1)
    keys[..., d_head:] = rope_apply(k_r.unsqueeze(1), table).transpose(0, 1)
    return queries.mul_(scale), keys, kv[..., d_head:].transpose(0, 1).contiguous()


def _causal_blocks(q: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Blocks of queries, the positions each sees, and what masks the square on the diagonal. q: (B, T, ...)."""
    length = q.shape[1]
    square = torch.full((QUERIES, QUERIES), -torch.inf, device=q.device).triu_(1)
    for start in range(0, length, QUERIES):
        end = min(start + QUERIES, length)
        yield slice(start, end), slice(0, end), square[: end - start, : end - start]


def _softmax(queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shares of attention, float32. queries: (H, n, h+R); keys: (H, m, h+R), the last n of which are masked by `mask`
    (n, n) -> (H, n, m)."""
    scores = torch.bmm(queries, keys.transpose(1, 2)).float()
    scores[..., -mask.shape[0] :] += mask
    return scores.softmax(dim=2)
