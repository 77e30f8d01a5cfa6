"""The whole model: embedding, layers, final norm, head, and the MTP chain on top.

Shapes: B sequences, T positions, D width, V vocabulary, E experts, L_r routers (MoE layers, then MTP modules).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from shoal_workloads.model.block import Block
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.experts import Experts
from shoal_workloads.model.ffn import SwiGLU
from shoal_workloads.model.latent_cache import LatentCache
from shoal_workloads.model.linear import Linear
from shoal_workloads.model.loss import head_nll
from shoal_workloads.model.moe import MoE
from shoal_workloads.model.mtp import MTPModule
from shoal_workloads.model.norm import RMSNorm
from shoal_workloads.model.rope import rope_table
from shoal_workloads.parallel.dispatch import Exchange
from shoal_workloads.precision.products import Products

__all__ = ["DeepSeekV3", "Losses"]


class Losses(NamedTuple):
    """Sums over the batch, in nats. lm: (), differentiable; lm_each: (B,); mtp: (), differentiable, summed over depths;
    balance: (), summed over sequences and MoE layers, without alpha; loads: (L_r, E) int64."""

    lm: torch.Tensor
    lm_each: torch.Tensor
    mtp: torch.Tensor
    balance: torch.Tensor
    loads: torch.Tensor


class DeepSeekV3(nn.Module):
    """`group`: the workers that share the experts, or their exchange (none: all experts are here). `dtype`: of
    activations; losses, router and norms' statistics are float32 in any case. `products`: the number format of the
    linear layers."""

    def __init__(
        self,
        c: ModelConfig,
        group: dist.ProcessGroup | Exchange | None = None,
        dtype: torch.dtype = torch.float32,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self.config, self.dtype = c, dtype
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.layers = nn.ModuleList(Block(c, group, dense=i < c.n_dense) for i in range(c.n_layers))
        self.norm = RMSNorm(c.d_model, c.norm_eps)
        self.head = Linear(c.d_model, c.vocab_size)
        self.mtp = nn.ModuleList(MTPModule(c, group) for _ in range(c.mtp_depth))
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
        """Rotations of positions start..start+length-1, as the layers take them."""
        return rope_table(self.config, length, device, start)

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
