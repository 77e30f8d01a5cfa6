"""One transformer layer: attention and FFN, each behind a norm and added to the residual stream."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.ffn import SwiGLU
from shoal_workloads.model.latent_cache import LatentCache
from shoal_workloads.model.mla import MLA
from shoal_workloads.model.moe import MoE
from shoal_workloads.model.norm import RMSNorm
from shoal_workloads.model.recompute import Make, Recomputed, at_once
from shoal_workloads.parallel.dispatch import Exchange

__all__ = ["Block"]


class Block(nn.Module):
    """A dense layer (`dense=True`, the first ones) or a MoE layer. `recompute`: norms and up-projections of attention
    are done again in backward, to keep less."""

    def __init__(self, c: ModelConfig, group: dist.ProcessGroup | Exchange | None, *, dense: bool) -> None:
        super().__init__()
        self.recompute = False
        self.attention_norm = RMSNorm(c.d_model, c.norm_eps)
        self.attention = MLA(c)
        self.ffn_norm = RMSNorm(c.d_model, c.norm_eps)
        self.ffn = SwiGLU(c.d_model, c.d_ffn) if dense else MoE(c, group)

    def forward(
        self, x: torch.Tensor, rope: torch.Tensor, past: LatentCache | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """x: (B, T, D); rope: (T, R/2, 2) -> (B, T, D), expert load (E,) and balance loss, none in a dense layer.
        `past`: when generating, the tokens before x, which those of x are added to."""
        if self.recompute and torch.is_grad_enabled():
            with Recomputed() as again:
                return self._layer(x, rope, past, again)
        return self._layer(x, rope, past, at_once)

    def _layer(
        self, x: torch.Tensor, rope: torch.Tensor, past: LatentCache | None, again: Make[Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        inner = again(lambda: self.attention_norm(x))
        if past is not None:
            middle = x + self.attention.extend(inner, rope, past)
        else:
            middle = x + self.attention(inner, rope, again)
        inner = again(lambda: self.ffn_norm(middle))
        if isinstance(self.ffn, MoE):
            y, load, balance = self.ffn(inner)
            return middle + y, load, balance
        return middle + self.ffn(inner), None, None
