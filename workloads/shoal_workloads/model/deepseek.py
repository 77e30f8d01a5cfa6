"""The whole model: embedding, layers, final norm, head, and the MTP chain on top.

Shapes: B sequences, T positions, D width, R width of MLA's RoPE part, V vocabulary, E experts, L_r routers (MoE layers,
then MTP modules).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from shoal_workloads.model import mla
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.exchange import Exchange
from shoal_workloads.model.ffn import Experts, SwiGLU
from shoal_workloads.model.latent_cache import LatentCache
from shoal_workloads.model.linear import Linear
from shoal_workloads.model.loss import head_nll
from shoal_workloads.model.moe import MoE
from shoal_workloads.model.norm import RMSNorm
from shoal_workloads.model.recompute import Keep, Level, Make, Recomputed, at_once
from shoal_workloads.model.rope import rope_table
from shoal_workloads.precision.products import Products

__all__ = ["Block", "DeepSeekV3", "Losses", "MTPModule"]


class Losses(NamedTuple):
    """Sums over the batch, in nats. lm: (), differentiable; lm_each: (B,); mtp: (), differentiable, summed over depths;
    balance: (), summed over sequences and MoE layers, without alpha; loads: (L_r, E) int64."""

    lm: torch.Tensor
    lm_each: torch.Tensor
    mtp: torch.Tensor
    balance: torch.Tensor
    loads: torch.Tensor


class Block(nn.Module):
    """A dense layer (`dense=True`, the first ones) or a MoE layer. `recompute`: what is made again in backward, to keep
    less. Copies that a GPU's kernels want (rotated queries and keys, rows by expert) are in any case; a CPU's want
    none."""

    def __init__(self, c: ModelConfig, exchange: Exchange | None, *, dense: bool) -> None:
        super().__init__()
        self.recompute: Level = False
        self.attention_norm = RMSNorm(c.d_model, c.norm_eps)
        self.attention = mla.MLA(c)
        self.ffn_norm = RMSNorm(c.d_model, c.norm_eps)
        self.ffn = SwiGLU(c.d_model, c.d_ffn) if dense else MoE(c, exchange)

    def forward(
        self, x: torch.Tensor, rope: torch.Tensor, past: LatentCache | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """x: (B, T, D); rope: (T, R/2, 2) -> (B, T, D), expert load (E,) and balance loss, none in a dense layer.
        `past`: when generating, the tokens before x, which those of x are added to."""
        if torch.is_grad_enabled() and (self.recompute or not mla.in_blocks(x)):
            with Recomputed() as copies:
                return self._layer(x, rope, past, copies if self.recompute else at_once, copies)
        return self._layer(x, rope, past, at_once, at_once)

    def _layer(
        self, x: torch.Tensor, rope: torch.Tensor, past: LatentCache | None, again: Make, copies: Make
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        inner = again(lambda: self.attention_norm(x))
        if past is not None:
            middle = x + self.attention.extend(inner, rope, past)
        else:
            middle = x + self.attention(inner, rope, again, copies)
        normed = again(lambda: self.ffn_norm(middle))
        keep = Keep(
            copies,
            (lambda: self.ffn_norm(middle)) if self.recompute else lambda: normed,
            raw=bool(self.recompute) or isinstance(self.ffn, MoE),  # a router keeps it
            inner=self.recompute not in ("ffn", "dispatch"),
            rows=self.recompute != "dispatch",
        )
        if isinstance(self.ffn, MoE):
            y, load, balance = self.ffn(normed, keep)
            return middle + y, load, balance
        return middle + self.ffn(normed, keep), None, None


class MTPModule(nn.Module):
    """Multi-token prediction: module k of a chain predicts the token k further on (report, section 2.2).

    h' = M [norm(h); norm(Emb(next token))], then one MoE block (equations 21-22). Embedding and head are the main
    model's; `norm` stands before the shared head."""

    def __init__(self, c: ModelConfig, exchange: Exchange | None) -> None:
        super().__init__()
        self.hidden_norm = RMSNorm(c.d_model, c.norm_eps)
        self.embedding_norm = RMSNorm(c.d_model, c.norm_eps)
        self.merge = Linear(2 * c.d_model, c.d_model)
        self.block = Block(c, exchange, dense=False)
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


class DeepSeekV3(nn.Module):
    """`exchange`: between the workers that share the experts (none: all experts are here). `dtype`: of activations;
    losses, router and norms' statistics are float32 in any case. `products`: the number format of the linear layers.
    """

    def __init__(
        self,
        c: ModelConfig,
        exchange: Exchange | None = None,
        dtype: torch.dtype = torch.float32,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self.config, self.dtype = c, dtype
        self._rotations: torch.Tensor | None = None
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.layers = nn.ModuleList(Block(c, exchange, dense=i < c.n_dense) for i in range(c.n_layers))
        self.norm = RMSNorm(c.d_model, c.norm_eps)
        self.head = Linear(c.d_model, c.vocab_size)
        self.mtp = nn.ModuleList(MTPModule(c, exchange) for _ in range(c.mtp_depth))
        if products is not None:
            for module in self.modules():
                # The head stays as it is: it is among the parts the report keeps in higher precision.
                if isinstance(module, (Linear, SwiGLU, Experts)) and module is not self.head:
                    module.products = products

    def forward(self, tokens: torch.Tensor, *, mtp: bool = True) -> Losses:
        """The losses of predicting every token from those before it.

        tokens: (B, T+1) int64; position i < T predicts token i+1, MTP module k token i+1+k where there is one."""
        return self.stage(range(self.config.n_layers), tokens, None, mtp=mtp, last=True)[1]

    def stage(
        self, layers: range, tokens: torch.Tensor, x: torch.Tensor | None, *, last: bool, mtp: bool = True
    ) -> tuple[torch.Tensor, Losses]:
        """The part of the model that one stage of a pipeline is: some of the layers, after the embedding if there are
        no hidden states yet, and before final norm, head and MTP modules if it is the last.

        tokens: (B, T+1) int64, all of them; their values count in the first and the last stage only. x: hidden states
        before `layers` (B, T, D); none: the embedding's. Returns those after them, and the losses (the main ones zero,
        but in the last stage) with the loads of the routers met."""
        length, reads = tokens.shape[1] - 1, mtp and last and len(self.mtp) > 0
        embedded = self.embed(tokens) if x is None or reads else None
        rope = self.rope(length, tokens.device)
        loads, balances = [], []
        if x is None:
            assert embedded is not None
            x = embedded[:, :length]
        for i in layers:
            x, load, balance = self.layers[i](x, rope)
            if load is not None:
                loads.append(load)
                balances.append(balance)
        nothing = torch.zeros((), device=tokens.device)
        lm, lm_each, mtp_sum = nothing, nothing.expand(len(tokens)), nothing
        if last:
            x = self.norm(x)
            head = self.head.weight.to(self.dtype)
            lm, nll = head_nll(x.flatten(0, 1), head, tokens[:, 1:].flatten())
            lm_each = nll.view(len(tokens), length).sum(dim=1)
        if embedded is not None and reads:
            for k, module in enumerate(self.mtp, start=1):
                # Depth k sees positions 0..T-1-k: its input at i is the embedding of token i+k, its target i+1+k.
                x, load, balance = module(x[:, : length - k], embedded[:, k:length], rope[: length - k])
                mtp_sum = mtp_sum + head_nll(x.flatten(0, 1), head, tokens[:, 1 + k :].flatten())[0]
                loads.append(load)
                balances.append(balance)
        return x, Losses(
            lm=lm,
            lm_each=lm_each,
            mtp=mtp_sum,
            balance=torch.stack(balances).sum() if balances else nothing,
            loads=torch.stack(loads)
            if loads
            else torch.zeros(0, self.config.n_experts, dtype=torch.int64, device=tokens.device),
        )

    def routers_of(self, layers: range, *, last: bool) -> range:
        """Places in `moe_layers` of the routers that `stage` meets."""
        first, end = (max(0, i - self.config.n_dense) for i in (layers.start, layers.stop))
        return range(first, self.config.n_routers if last else end)

    def tokens(self, ids: Sequence[int]) -> torch.Tensor:
        """One sequence where the model is: (1, T) int64."""
        return torch.tensor([ids], device=self.embedding.weight.device)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (B, T) -> (B, T, D), in the type of the activations."""
        return self.embedding(tokens).to(self.dtype)

    def rope(self, length: int, device: torch.device, start: int = 0) -> torch.Tensor:
        """Rotations of positions start..start+length-1, as the layers take them. They are kept where they are used, and
        made anew only for positions beyond those, twice as many as before."""
        end, kept = start + length, self._rotations
        if kept is None or kept.device != device or len(kept) < end:
            known = len(kept) if kept is not None and kept.device == device else 0
            kept = self._rotations = rope_table(self.config, max(end, 2 * known), device)
        return kept[start:end]

    def hidden(self, tokens: torch.Tensor, past: Sequence[LatentCache] | None = None) -> torch.Tensor:
        """Last hidden states after the final norm. tokens: (B, T) int64 -> (B, T, D). `past`: a cache a layer, of the
        tokens before; these are added."""
        x = self.embed(tokens)
        rope = self.rope(tokens.shape[1], tokens.device, len(past[0]) if past else 0)
        for i, layer in enumerate(self.layers):
            x, _, _ = layer(x, rope, past[i] if past else None)
        return self.norm(x)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Next-token logits. tokens: (B, T) int64 -> (B, T, V)."""
        return self.head(self.hidden(tokens))

    def moe_layers(self) -> list[MoE]:
        """The MoE layers in the order of `Losses.loads`."""
        return [block.ffn for block in self.blocks() if isinstance(block.ffn, MoE)]

    def blocks(self) -> list[Block]:
        """The layers, then those of the MTP modules."""
        candidates = [*self.layers, *(module.block for module in self.mtp)]
        return [block for block in candidates if isinstance(block, Block)]
