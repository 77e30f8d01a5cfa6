"""DeepSeekMoE: routed experts, spread over workers, beside shared ones. No token is ever dropped.

Shapes: B sequences, T positions, D width, N = B*T tokens, K experts a token, E experts in all.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.experts import Experts
from shoal_workloads.model.ffn import SwiGLU
from shoal_workloads.model.permute import routes_of
from shoal_workloads.model.router import Router, Routing, sequence_balance
from shoal_workloads.parallel.dispatch import Exchange
from shoal_workloads.parallel.exchange import make_exchange

__all__ = ["MoE"]


class MoE(nn.Module):
    """`group`: the workers that share the experts, or their exchange, which several layers may share; none: all experts
    are here.

    `placement`: (E,) int64, the slot of every shared expert: they are held slot after slot, and go by their own number
    everywhere else (router, bias, load). None: every expert in the slot of its number. Set by `Rebalance`."""

    def __init__(self, c: ModelConfig, group: dist.ProcessGroup | Exchange | None) -> None:
        super().__init__()
        self.n_experts, self.top_k = c.n_experts, c.top_k
        self.exchange = make_exchange(group) if isinstance(group, dist.ProcessGroup) else group
        self.held = c.n_experts // (self.exchange.ranks if self.exchange else 1)
        self.placement: torch.Tensor | None = None
        self.router = Router(c)
        self.experts = Experts(self.held, c.d_model, c.d_expert)
        self.shared = SwiGLU(c.d_model, c.n_shared * c.d_expert) if c.n_shared else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x: (B, T, D) -> output (B, T, D), this worker's load of each expert (E,) int64, and the balance loss summed
        over sequences, without its factor."""
        tokens = x.flatten(0, 1)
        routing = self.router(tokens)
        if self.exchange is None:
            y, load, balance = self._here(tokens, routing, x.shape[0])
        else:
            y, load, balance = self._elsewhere(self.exchange, tokens, routing, x.shape[0])
        return y.view_as(x), load, balance

    def _here(
        self, tokens: torch.Tensor, routing: Routing, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        load, balance = self._load(routing), sequence_balance(routing.scores, batch, self.top_k)
        y = self.experts(tokens, routing.gates.flatten(), routes_of(routing.experts.flatten(), load, self.top_k))
        if self.shared is not None:
            y = y + self.shared(tokens)
        return y, load, balance

    def _elsewhere(
        self, exchange: Exchange, tokens: torch.Tensor, routing: Routing, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What needs no other worker is computed while rows travel, forward and (see `all_to_all`) backward."""
        fp8 = self.experts.products.dispatches_fp8
        slots = routing.experts if self.placement is None else self.placement[routing.experts]
        trip = exchange.dispatch(tokens, routing.gates, slots, self.held, fp8=fp8)
        shared = None if self.shared is None else self.shared(tokens)
        trip.depart(self.experts(*trip.arrive()))
        load, balance = self._load(routing), sequence_balance(routing.scores, batch, self.top_k)
        y = trip.home()
        return y if shared is None else y + shared, load, balance

    def _load(self, routing: Routing) -> torch.Tensor:
        return torch.bincount(routing.experts.flatten(), minlength=self.n_experts)
