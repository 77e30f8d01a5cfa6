"""DeepSeekMoE: routed experts, spread over workers, beside shared ones. No token is ever dropped.

Shapes: B sequences, T positions, D width, N = B*T tokens, K experts a token, E experts in all, P workers that share the
experts (expert parallelism), R rows.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.experts import Experts
from shoal_workloads.model.ffn import SwiGLU
from shoal_workloads.model.permute import Routes, gather_rows, routes_of, spread, unspread
from shoal_workloads.model.router import Router, sequence_balance
from shoal_workloads.parallel.all_to_all import all_to_all

__all__ = ["MoE"]


class MoE(nn.Module):
    """`group`: the workers that share the experts; none: all experts are here."""

    def __init__(self, c: ModelConfig, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.n_experts, self.top_k, self.group = c.n_experts, c.top_k, group
        self.router = Router(c)
        self.experts = Experts(c.n_experts // (group.size() if group else 1), c.d_model, c.d_expert)
        self.shared = SwiGLU(c.d_model, c.n_shared * c.d_expert) if c.n_shared else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x: (B, T, D) -> output (B, T, D), this worker's load of each expert (E,) int64, and the balance loss summed
        over sequences, without its factor."""
        tokens = x.flatten(0, 1)
        routing = self.router(tokens)
        load = torch.bincount(routing.experts.flatten(), minlength=self.n_experts)
        balance = sequence_balance(routing.scores, x.shape[0], self.top_k)
        routes = routes_of(routing.experts.flatten(), load, self.top_k)
        gates = routing.gates.flatten()
        y = self.experts(tokens, gates, routes) if self.group is None else self._elsewhere(tokens, gates, routes)
        if self.shared is not None:
            y = y + self.shared(tokens)
        return y.view_as(x), load, balance

    def _elsewhere(self, tokens: torch.Tensor, gates: torch.Tensor, routes: Routes) -> torch.Tensor:
        """Rows sorted by expert go to the workers that hold the experts, and come back. tokens: (N, D) -> (N, D)."""
        assert self.group is not None
        ranks, load = self.group.size(), routes.counts
        arriving = torch.empty_like(load)
        dist.all_to_all_single(arriving, load, group=self.group)
        counts = arriving.view(ranks, -1)  # (P, E/P): rows for my experts by source
        send = load.view(ranks, -1).sum(dim=1).tolist()
        receive = counts.sum(dim=1).tolist()
        # Rows arrive by source, then expert; the products want them by expert, then source.
        mine = torch.arange(counts.shape[1], device=load.device).repeat(ranks)
        here = routes_of(mine.repeat_interleave(arriving), counts.sum(dim=0), choices=1)
        fp8 = self.experts.products.dispatches_fp8
        rows = all_to_all(spread(tokens, routes), receive, send, self.group, fp8=(fp8, False))
        row_gates = all_to_all(gather_rows(gates, routes.order, routes.inverse), receive, send, self.group)
        out = all_to_all(self.experts(rows, row_gates, here), send, receive, self.group, fp8=(False, fp8))
        return unspread(out, routes)
