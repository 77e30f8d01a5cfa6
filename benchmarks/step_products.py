"""The matrix products of a training step and nothing else: what no implementation on this machine's kernels can beat.

Every product of `train_step`'s model, forward and backward, at the sizes at which it is done (experts in blocks of 512
rows, attention in blocks of 128 queries that see what is before them), from and to memory that is there already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

EXPERT_ROWS, QUERIES = 512, 128


class Product(NamedTuple):
    """`times` products (batch, m, k) x (batch, k, n)."""

    times: int
    batch: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        return 2 * self.times * self.batch * self.m * self.k * self.n


def products(shape: dict[str, Any], batch: int, length: int) -> list[Product]:
    """Of one step on `batch` sequences of `length` tokens; no MTP."""
    d, heads, layers = shape["d_model"], shape["n_heads"], shape["n_layers"]
    moe = layers - shape["n_dense"]
    width, rows = shape["d_head"] + shape["d_rope"], batch * length
    found = [
        *_layer(layers, rows, d, shape["d_q"]),
        *_layer(layers, rows, shape["d_q"], heads * width),
        *_layer(layers, rows, d, shape["d_kv"] + shape["d_rope"]),
        *_layer(layers, rows, shape["d_kv"], heads * (shape["d_head"] + shape["d_v"])),
        *_layer(layers, rows, heads * shape["d_v"], d),
        *_layer(shape["n_dense"], rows, d, 2 * shape["d_ffn"]),
        *_layer(shape["n_dense"], rows, shape["d_ffn"], d),
        *_layer(moe, rows, d, shape["n_experts"]),
        *_layer(1, rows, d, shape["vocab_size"]),
    ]
    blocks = moe * (shape["top_k"] + shape["n_shared"]) * rows // EXPERT_ROWS
    found += [
        *_layer(blocks, EXPERT_ROWS, d, 2 * shape["d_expert"]),
        *_layer(blocks, EXPERT_ROWS, shape["d_expert"], d),
    ]
    for seen in range(QUERIES, length + 1, QUERIES):
        times, value = layers * batch, shape["d_v"]
        found += [
            Product(2 * times, heads, QUERIES, width, seen),  # scores, and again in backward
            Product(times, heads, QUERIES, seen, value),
            Product(times, heads, QUERIES, value, seen),  # gradient of the shares
            Product(times, heads, QUERIES, seen, width),  # of queries
            Product(times, heads, seen, QUERIES, width),  # of keys
            Product(times, heads, seen, QUERIES, value),  # of values
        ]
    return found


def _layer(times: int, rows: int, inputs: int, outputs: int) -> list[Product]:
    """A linear layer: output, gradient of the input, gradient of the weight."""
    return [
        Product(times, 1, rows, inputs, outputs),
        Product(times, 1, rows, outputs, inputs),
        Product(times, 1, outputs, rows, inputs),
    ]


def multiplying(wanted: list[Product], dtype: torch.dtype) -> Callable[[], None]:
    """A function that does them all."""
    ready = []
    for p in wanted:
        sizes = [(p.m, p.k), (p.k, p.n), (p.m, p.n)]
        operands = [torch.randn((p.batch, *size) if p.batch > 1 else size).to(dtype) for size in sizes]
        ready.append((p.times, torch.bmm if p.batch > 1 else torch.mm, operands))

    def run() -> None:
        for times, multiply, (a, b, out) in ready:
            for _ in range(times):
                multiply(a, b, out=out)

    return run
