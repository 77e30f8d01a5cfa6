"""What a part of training is counted by where the device was measured: a calibration fits seconds to these amounts
(`fitting.fitted`), and an estimate multiplies them again (`measured`).

Of a CPU: its products are near their best at any size, and what takes the rest of the time is memory, beyond the cache
most of all, and Python. Shapes: as in the model; t tokens of a micro-batch, in samples of a length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from shoal_workloads.estimate.layer import FP32, Product
from shoal_workloads.model.attention_cpu import QUERIES
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.ffn_blocks import ROWS

__all__ = ["Amounts", "Batch", "core", "ends", "layer", "product", "seconds"]

Amounts = Mapping[str, float]
CACHE = 512 << 10
"""Bytes of a block's scores beyond which they do not stay beside the rest in a core's cache: half of one of 1 MiB."""


@dataclass(frozen=True)
class Batch:
    """`samples` of a `length`, in activations of so many bytes (`width`)."""

    samples: int
    length: int
    width: int

    @property
    def tokens(self) -> int:
        return self.samples * self.length


def seconds(costs: Mapping[str, float], amounts: Amounts) -> float:
    """What is not among the costs takes nothing."""
    return sum(costs.get(name, 0.0) * amount for name, amount in amounts.items())


def product(one: Product, width: int) -> Amounts:
    """`each`: an expert's rows come in blocks, which multiply one after the other."""
    blocks = ceil(one.m / ROWS) if one.times > 1 else 1
    moved = width * (one.m * one.k + one.k * one.n * blocks + one.m * one.n)
    return {
        "each": one.times * blocks,
        "flop": 2.0 * one.times * one.m * one.n * one.k,
        "byte": one.times * moved,
    }


def core(model: ModelConfig, batch: Batch) -> Amounts:
    """Causal attention in blocks of queries, each of which sees all before its end. `beyond`: bytes of scores for which
    the cache has no room."""
    blocks, scores, beyond = 0, 0, 0.0
    for start in range(0, batch.length, QUERIES):
        end = min(start + QUERIES, batch.length)
        blocks += 1
        scores += model.n_heads * (end - start) * end
        beyond += max(0.0, FP32 * model.n_heads * (end - start) * end - CACHE)
    wide = model.n_heads * (2 * (model.d_head + model.d_rope) + model.d_v)
    return {
        "each": batch.samples,
        "block": batch.samples * blocks,
        "flop": 2.0 * batch.samples * scores * (model.d_head + model.d_rope + model.d_v),
        "byte": batch.width * batch.tokens * wide,
        "beyond": batch.samples * beyond,
    }


def layer(model: ModelConfig, batch: Batch, held: int, *, dense: bool) -> Amounts:
    """Beside products and attention: `byte`, of activations that are read and written; `expert`, those of the `held`
    that have rows; `score`, of the router; `weight`, parameters of the worker's."""
    d, heads = model.d_model, model.n_heads
    query = heads * (model.d_head + model.d_rope)
    hidden = model.d_ffn if dense else (model.n_shared + model.top_k) * model.d_expert
    wide = 12 * d + 4 * query + 3 * hidden + (0 if dense else 2 * model.top_k * d)
    attention = d * (model.d_kv + model.d_rope) + ((d + query) * model.d_q if model.d_q else d * query)
    attention += model.d_kv * heads * (model.d_head + model.d_v) + heads * model.d_v * d
    found = {"each": 1.0, "byte": float(batch.width * batch.tokens * wide)}
    if dense:
        return found | {"weight": attention + 3.0 * d * model.d_ffn}
    ffn = 3.0 * d * model.d_expert * (model.n_shared + held)
    return found | {
        "weight": attention + ffn,
        "expert": float(min(held, batch.tokens * model.top_k)),
        "score": float(batch.tokens * model.n_experts),
    }


def ends(model: ModelConfig, batch: Batch) -> Amounts:
    """`score`: of the vocabulary; `weight`: of embedding and head."""
    return {
        "each": 1.0,
        "byte": float(batch.width * batch.tokens * model.d_model),
        "score": float(batch.tokens * model.vocab_size),
        "weight": 2.0 * model.vocab_size * model.d_model,
    }
