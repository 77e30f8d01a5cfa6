"""Which experts a token uses, and by how much (report, equations 12-20).

Shapes: N tokens, D width, E experts, K chosen experts, G groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from shoal_workloads.model.config import ModelConfig

__all__ = ["Router", "Routing", "choose", "sequence_balance"]


class Routing(NamedTuple):
    """experts: (N, K) int64, unordered; gates: (N, K) float32; scores: (N, E) float32, s of equation 15."""

    experts: torch.Tensor
    gates: torch.Tensor
    scores: torch.Tensor


class _Affinity(torch.autograd.Function):
    """x w^T in float32; keeps x as it is, not its float32 copy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return F.linear(x.float(), w.float())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, w = ctx.saved_tensors
        return (grads[0] @ w.float()).to(x.dtype), (grads[0].T @ x.float()).to(w.dtype)


class Router(nn.Module):
    """Sigmoid affinities in float32; a bias, moved by the balancing rule and not by gradients, only decides who is
    chosen and never scales an output."""

    bias: torch.Tensor

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c.n_experts, c.d_model))
        self.register_buffer("bias", torch.zeros(c.n_experts))
        self.top_k, self.groups, self.topk_groups, self.route_scale = c.top_k, c.n_groups, c.topk_groups, c.route_scale

    def forward(self, x: torch.Tensor) -> Routing:
        """x: (N, D) -> the routing of every token."""
        scores = _Affinity.apply(x, self.weight).sigmoid()
        experts = choose(scores.detach() + self.bias, self.top_k, self.groups, self.topk_groups)
        chosen = scores.gather(1, experts)
        gates = chosen / chosen.sum(dim=1, keepdim=True) * self.route_scale
        return Routing(experts, gates, scores)


def choose(biased: torch.Tensor, top_k: int, groups: int, topk_groups: int) -> torch.Tensor:
    """Node-limited top-k. biased: (N, E) scores plus bias -> (N, K) expert indices.

    A group's score is the sum of its top-2 scores; groups that are not kept are masked with -inf, since a kept score
    plus bias may be negative."""
    if topk_groups < groups:
        grouped = biased.unflatten(1, (groups, -1))
        group_score = grouped.topk(min(2, grouped.shape[2]), dim=2).values.sum(dim=2)
        kept = torch.zeros_like(group_score, dtype=torch.bool)
        kept.scatter_(1, group_score.topk(topk_groups, dim=1).indices, True)
        biased = grouped.masked_fill(~kept.unsqueeze(2), -torch.inf).flatten(1)
    return biased.topk(top_k, dim=1, sorted=False).indices


def sequence_balance(scores: torch.Tensor, batch: int, top_k: int) -> torch.Tensor:
    """Sum over sequences of the sequence-wise balance loss without its factor alpha (equations 17-20).

    scores: (B*T, E), `batch` = B. f counts each token's top-k by the unbiased scores over all experts; P is the mean
    share of the scores."""
    experts = scores.shape[1]
    by_sequence = scores.unflatten(0, (batch, -1))  # (B, T, E)
    length = by_sequence.shape[1]
    top = by_sequence.detach().topk(top_k, dim=2, sorted=False).indices.flatten(1)  # (B, T*K)
    counts = torch.zeros(batch, experts, device=scores.device).scatter_add_(
        1, top, torch.ones_like(top, dtype=torch.float32)
    )
    fraction = counts * (experts / (top_k * length))
    share = (by_sequence / by_sequence.sum(dim=2, keepdim=True)).mean(dim=1)
    return (fraction * share).sum()
