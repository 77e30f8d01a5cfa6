"""DeepSeekMoE (report, equations 12-20): which experts a token uses and by how much, and what becomes of it there.
Routed experts, spread over workers, beside shared ones. No token is ever dropped.

Shapes: B sequences, T positions, D width, N = B*T tokens, K experts a token, E experts in all, G groups.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.exchange import Exchange
from shoal_workloads.model.ffn import EVERYTHING, Experts, SwiGLU
from shoal_workloads.model.permute import counts_of, routes_of
from shoal_workloads.model.recompute import Keep

__all__ = ["MoE", "Router", "Routing", "choose", "sequence_balance"]


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


class MoE(nn.Module):
    """`exchange`: between the workers that share the experts, which several layers may share; none: all experts are
    here.

    `placement`: (E,) int64, the place of every shared expert: they are held place after place, and go by their own
    number everywhere else (router, bias, load). None: every expert in the place of its number. Set by `Rebalance`.

    `apart`: the rows of each worker go through the experts by themselves (see `Experts.tap`). Set by `Rounded`."""

    def __init__(self, c: ModelConfig, exchange: Exchange | None) -> None:
        super().__init__()
        self.n_experts, self.top_k = c.n_experts, c.top_k
        self.exchange = exchange
        self.held = c.n_experts // (exchange.ranks if exchange else 1)
        self.placement: torch.Tensor | None = None
        self.apart = False
        self.router = Router(c)
        self.experts = Experts(self.held, c.d_model, c.d_expert)
        self.shared = SwiGLU(c.d_model, c.n_shared * c.d_expert) if c.n_shared else None

    def forward(self, x: torch.Tensor, keep: Keep = EVERYTHING) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x: (B, T, D) -> output (B, T, D), this worker's load of each expert (E,) int64, and the balance loss summed
        over sequences, without its factor."""
        tokens, made = x.flatten(0, 1), keep.x
        keep = keep if made is None else replace(keep, x=lambda: made().flatten(0, 1))
        routing = self.router(tokens)
        if self.exchange is None:
            y, load, balance = self._here(tokens, routing, x.shape[0], keep)
        else:
            y, load, balance = self._elsewhere(self.exchange, tokens, routing, x.shape[0], keep)
        return y.view_as(x), load, balance

    def _here(
        self, tokens: torch.Tensor, routing: Routing, batch: int, keep: Keep
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        load, balance = self._load(routing), sequence_balance(routing.scores, batch, self.top_k)
        routes = routes_of(routing.experts.flatten(), load, self.top_k)
        y = self.experts(tokens, routing.gates.flatten(), routes, keep)
        if self.shared is not None:
            y = y + self.shared(tokens, keep)
        return y, load, balance

    def _elsewhere(
        self, exchange: Exchange, tokens: torch.Tensor, routing: Routing, batch: int, keep: Keep
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What needs no other worker is computed while rows travel, forward and (see `dispatch`) backward."""
        fp8 = self.experts.products.dispatches_fp8
        places = routing.experts if self.placement is None else self.placement[routing.experts]
        # Dispatch, behind the shared experts.
        trip = exchange.dispatch(tokens, routing.gates, places, self.held, fp8=fp8)
        shared = None if self.shared is None else self.shared(tokens, keep)
        rows, gates, routes = trip.dispatched()
        # Experts; then combine, behind the balance loss.
        made = keep.x
        again = None if keep.rows or made is None else lambda: trip.dispatched_again(made())
        if self.apart and trip.sources is not None:
            trip.combine(self.experts(rows, gates, trip.sources, replace(keep, x=None)))
        else:
            trip.combine(self.experts(rows, gates, routes, replace(keep, x=again)))
        load, balance = self._load(routing), sequence_balance(routing.scores, batch, self.top_k)
        y = trip.combined()
        return y if shared is None else y + shared, load, balance

    def _load(self, routing: Routing) -> torch.Tensor:
        return counts_of(routing.experts.flatten(), self.n_experts)
