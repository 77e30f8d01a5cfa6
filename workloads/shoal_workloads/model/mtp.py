"""Multi-token prediction: a chain of small modules, module k predicts the token k further on (report, section 2.2)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from shoal_workloads.model.block import Block
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.latent_cache import LatentCache
from shoal_workloads.model.linear import Linear
from shoal_workloads.model.norm import RMSNorm
from shoal_workloads.parallel.dispatch import Exchange

__all__ = ["MTPModule"]


class MTPModule(nn.Module):
    """h' = M [norm(h); norm(Emb(next token))], then one MoE block (equations 21-22). Embedding and head are the main
    model's; `norm` stands before the shared head."""

    def __init__(self, c: ModelConfig, group: dist.ProcessGroup | Exchange | None) -> None:
        super().__init__()
        self.hidden_norm = RMSNorm(c.d_model, c.norm_eps)
        self.embedding_norm = RMSNorm(c.d_model, c.norm_eps)
        self.merge = Linear(2 * c.d_model, c.d_model)
        self.block = Block(c, group, dense=False)
        self.norm = RMSNorm(c.d_model, c.norm_eps)

    def forward(
        self, h: torch.Tensor, embedded: torch.Tensor, rope: torch.Tensor, past: LatentCache | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """h: (B, T', D), hidden states of depth k-1 after their norm (depth 0: the main model's final norm), which is
        what engines that serve the public checkpoints feed; embedded: (B, T', D), embeddings of the tokens k further on
        -> hidden states after their norm (B, T', D), expert load and balance loss as of a block, whose
        `past` it is."""
        merged = self.merge(torch.cat([self.hidden_norm(h), self.embedding_norm(embedded)], dim=-1))
        out, load, balance = self.block(merged, rope, past)
        return self.norm(out), load, balance
