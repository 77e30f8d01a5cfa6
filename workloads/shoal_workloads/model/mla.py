"""Multi-head latent attention (report, equations 1-11).

Shapes: B sequences, T positions, D model width, H heads, C rank of the key-value latent, Q rank of the query latent,
h width of a head without RoPE, R width of the RoPE part, v width of a value head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from shoal_workloads.model.attention_cpu import attend_in_blocks
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.latent_cache import LatentCache
from shoal_workloads.model.linear import Linear
from shoal_workloads.model.norm import RMSNorm
from shoal_workloads.model.recompute import Make, at_once
from shoal_workloads.model.rope import rope_apply, softmax_scale

__all__ = ["MLA", "attend", "in_blocks"]


class MLA(nn.Module):
    """Causal attention whose keys and values come from one low-rank latent, and whose position is carried by a
    decoupled part of query and key: the key's is one head shared by all."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.heads, self.d_head, self.d_rope, self.d_v = c.n_heads, c.d_head, c.d_rope, c.d_v
        self.d_kv, self.d_q = c.d_kv, c.d_q
        d_qk = c.d_head + c.d_rope
        if c.d_q is None:
            self.wq = Linear(c.d_model, c.n_heads * d_qk)
        else:
            self.wq_a = Linear(c.d_model, c.d_q)
            self.q_norm = RMSNorm(c.d_q, c.norm_eps)
            self.wq_b = Linear(c.d_q, c.n_heads * d_qk)
        self.wkv_a = Linear(c.d_model, c.d_kv + c.d_rope)
        self.kv_norm = RMSNorm(c.d_kv, c.norm_eps)
        self.wkv_b = Linear(c.d_kv, c.n_heads * (c.d_head + c.d_v))
        self.wo = Linear(c.n_heads * c.d_v, c.d_model, role="attention")
        self.scale = softmax_scale(c)

    def forward(
        self, x: torch.Tensor, rope: torch.Tensor, again: Make = at_once, copies: Make = at_once
    ) -> torch.Tensor:
        """x: (B, T, D), already normalised; rope: (T, R/2, 2) -> (B, T, D). `again`: how norms and up-projections are
        made; `copies`: how rotated queries and keys are, from what these made."""
        query, latent = self.compress(x, raw=again is not at_once)
        if in_blocks(x):
            q, kv, k_r = again(lambda: self.expand(query, latent, again))
            return self.wo(attend_in_blocks(q, kv, k_r, rope, self.scale).flatten(2))
        made = None if again is copies else self.expand(query, latent, again)
        q, k, v = copies(lambda: self._rotated(*(made or self.expand(query, latent, again)), rope))
        return self.wo(attend(q, k, v, self.scale).flatten(2), raw=True)  # the kernel keeps its output

    def compress(self, x: torch.Tensor, *, raw: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """x: (B, T, D) -> query latent (B, T, Q), or the whole query where there is no latent, and key-value latent
        with the RoPE key (B, T, C+R). `raw`: as in `Linear`."""
        return (self.wq if self.d_q is None else self.wq_a)(x, raw=raw), self.wkv_a(x, raw=raw)

    def expand(
        self, query: torch.Tensor, latent: torch.Tensor, again: Make
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From the latents to queries (B, T, H, h+R), keys with values (B, T, H, h+v), and the shared key (B, T, R),
        without RoPE."""
        raw = again is not at_once
        q = query if self.d_q is None else self.wq_b(again(lambda: self.q_norm(query)), raw=raw)
        latent, k_r = latent.split([self.d_kv, self.d_rope], dim=-1)
        kv = self.wkv_b(again(lambda: self.kv_norm(latent)), raw=raw)
        return q.unflatten(-1, (self.heads, -1)), kv.unflatten(-1, (self.heads, -1)), k_r

    def _rotated(
        self, q: torch.Tensor, kv: torch.Tensor, k_r: torch.Tensor, rope: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys (B, T, H, h+R) and values (B, T, H, v) as fused kernels take them."""
        q_c, q_r = q.split([self.d_head, self.d_rope], dim=-1)
        k_c, v = kv.split([self.d_head, self.d_v], dim=-1)
        k_r = rope_apply(k_r.unsqueeze(2), rope).expand(-1, -1, self.heads, -1)
        q = torch.cat([q_c, rope_apply(q_r, rope)], dim=-1)
        k = torch.cat([k_c, k_r], dim=-1)
        return q, k, v

    def extend(self, x: torch.Tensor, rope: torch.Tensor, past: LatentCache) -> torch.Tensor:
        """Attention of new tokens over the cached ones and themselves, on the latents: W_UK goes into the query and
        W_UV into the output (V2 paper, section 2.1.2). x: (B, n, D); rope: rotations of their positions -> (B, n, D).
        """
        seen, query = len(past), self.compress(x)
        q = (query[0] if self.d_q is None else self.wq_b(self.q_norm(query[0]))).unflatten(-1, (self.heads, -1))
        q_c, q_r = q.split([self.d_head, self.d_rope], dim=-1)
        latent, k_r = query[1].split([self.d_kv, self.d_rope], dim=-1)
        latent, k_r = past.extend(self.kv_norm(latent), rope_apply(k_r.unsqueeze(2), rope).squeeze(2))
        up_k, up_v = self.wkv_b.weight.to(x.dtype).unflatten(0, (self.heads, -1)).split([self.d_head, self.d_v], dim=1)
        scores = torch.einsum("bnhd,hdc,bsc->bhns", q_c, up_k, latent)
        scores = (scores + torch.einsum("bnhr,bsr->bhns", rope_apply(q_r, rope), k_r)).float() * self.scale
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu_(seen + 1)
        shares = scores.masked_fill_(ahead, -torch.inf).softmax(dim=-1).to(x.dtype)
        return self.wo(torch.einsum("bhns,bsc,hvc->bnhv", shares, latent, up_v).flatten(2))


def in_blocks(x: torch.Tensor) -> bool:
    """Whether attention is done block by block in the cache (see `attention_cpu`) or by a fused kernel."""
    return x.device.type == "cpu"


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal softmax attention. q, k: (B, T, H, h+R); v: (B, T, H, v) -> (B, T, H, v).

    Values are not padded to the width of keys: what is kept for backward would be half as large again. torch's Flash
    kernel takes one width alone; cuDNN's and the memory-efficient one take two."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)
