"""What a calibration runs: parts of our own models with values of no meaning, a little larger and smaller than each
other, so that what each amount takes can be told apart (`amounts`).

Of each part the seconds are those that the process itself ran, where that is a CPU's: who else wants the core meanwhile
does not count. Repeats of a part follow each other, as layers do in a step, and all parts take turns, so that a machine
that is busy for a while disturbs them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.layer import Product
from shoal_workloads.model.attention_cpu import attend_in_blocks
from shoal_workloads.model.deepseek import Block
from shoal_workloads.model.ffn import Experts, SwiGLU
from shoal_workloads.model.linear import Linear
from shoal_workloads.model.rope import rope_table
from shoal_workloads.parallel.engine import Factors, Figures
from shoal_workloads.parallel.fsdp import Fsdp
from shoal_workloads.precision.choose import choose
from shoal_workloads.precision.weight_grads import Waiting

__all__ = [
    "Clock",
    "Found",
    "Work",
    "attention",
    "clock_of",
    "layer",
    "probe_config",
    "products",
    "run",
    "step",
    "timed",
]

Clock = Callable[[], float]
Work = Callable[[], Sequence[float]]
"""Does its part once: seconds of each of its passes."""
REPEATS = 2
"""Of a part's turn, after one that does not count."""


@dataclass(frozen=True)
class Found:
    """Of one part: medians of its passes, and how far repeats are from them, relative, at the median."""

    seconds: tuple[float, ...]
    spread: float


def clock_of(kind: str) -> Clock:
    """cpu: of what this process ran; cuda: of what is done on the device."""
    if kind == "cpu":
        return time.process_time

    def settled() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return settled


def run(works: Sequence[Work], budget: float) -> list[Found]:
    """All of them in turns for `budget` seconds; once at least."""
    for work in works:
        work()
    times: list[list[Sequence[float]]] = [[] for _ in works]
    end, turns = time.monotonic() + budget, 0
    while not turns or time.monotonic() < end:
        for work, found in zip(works, times, strict=True):
            work()
            found += [work() for _ in range(REPEATS)]
        turns += 1
    return [median(found) for found in times]


def median(times: Sequence[Sequence[float]]) -> Found:
    table = np.array(times)
    middle = np.median(table, axis=0)
    spread = np.median(np.abs(table.sum(axis=1) / middle.sum() - 1))
    return Found(tuple(middle.tolist()), float(spread))


def timed(clock: Clock, *parts: Callable[[], object]) -> list[float]:
    marks = [clock()]
    for part in parts:
        part()
        marks.append(clock())
    return [after - before for before, after in pairwise(marks)]


# ---- the parts


def products(of: Product, precision: str, kind: str) -> Work:
    """A linear layer: forward, then both gradients."""
    dtype, made = choose(precision, kind)
    x = torch.randn(int(of.m), of.k, dtype=dtype, device=kind, requires_grad=True)
    w = torch.randn(of.n, of.k, dtype=dtype, device=kind, requires_grad=True)
    dy = torch.randn(int(of.m), of.n, dtype=dtype, device=kind)
    clock, kept = clock_of(kind), made.cache(x.detach())

    def work() -> list[float]:
        with torch.no_grad():
            return timed(
                clock,
                lambda: made.fprop(kept, w, None, dtype),
                lambda: made.dgrad(dy, w, None),
                lambda: made.wgrad(dy, kept, None, dtype),
            )

    return work


def attention(config: PretrainConfig, kind: str = "cpu") -> Work:
    """The core of a CPU: forward, backward."""
    model, samples, length = config.model, config.batch.micro_batch, config.data.seq_len
    dtype = choose(config.precision, kind)[0]
    heads, head, rotated, value = model.n_heads, model.d_head, model.d_rope, model.d_v

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(samples, length, *shape, dtype=dtype, requires_grad=True)

    q, kv, k_r = leaf(heads, head + rotated), leaf(heads, head + value), leaf(rotated)
    table, dy = rope_table(model, length, torch.device(kind)), leaf(heads, value).detach()
    clock = clock_of(kind)

    def work() -> list[float]:
        made = list[torch.Tensor]()
        found = timed(
            clock,
            lambda: made.append(attend_in_blocks(q, kv, k_r, table, 0.1)),
            lambda: made[0].backward(dy),
        )
        q.grad = kv.grad = k_r.grad = None
        return found

    return work


def layer(config: PretrainConfig, kind: str, *, dense: bool, clock: Clock | None = None) -> Work:
    """One layer: forward, both gradients at once; then, of another forward, the gradient of the input, and those of the
    weights."""
    block = Block(config.model, None, dense=dense)
    dtype, made = choose(config.precision, kind)
    for module in block.modules():
        if isinstance(module, Linear | SwiGLU | Experts):
            module.products = made
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    block.to(kind).recompute = config.parallel.recompute
    shape = config.batch.micro_batch, config.data.seq_len, config.model.d_model
    x, dy = (torch.randn(shape, dtype=dtype, device=kind) for _ in range(2))
    x.requires_grad_()
    rope = rope_table(config.model, config.data.seq_len, torch.device(kind))
    clock = clock or clock_of(kind)

    def work() -> list[float]:
        outputs: list[Any] = []

        def forward() -> None:
            y, _, balance = block(x, rope)
            outputs[:] = [y] if balance is None else [y, balance]

        def backward() -> None:
            grads = [dy, *(torch.ones_like(one) for one in outputs[1:])]
            torch.autograd.backward(outputs, grads)

        def wait() -> None:
            with waiting:
                backward()

        found = timed(clock, forward, backward)
        x.grad, waiting = None, Waiting()
        forward()
        found += timed(clock, wait, waiting.finish)
        x.grad = None
        return found

    return work


def step(config: PretrainConfig) -> Work:
    """A micro-batch of a worker that is alone, forward and backward."""
    dtype, made = choose(config.precision, config.device)
    engine = Fsdp(config, 0, 1, dtype, made)
    for shard in engine.shards:
        torch.nn.init.normal_(shard.parameter, std=0.05)
    model, samples = config.model, config.batch.micro_batch
    tokens = torch.randint(model.vocab_size, (samples, config.data.seq_len + 1), device=config.device)
    figures = Figures(torch.zeros(model.n_routers, model.n_experts, device=config.device))
    factors, clock = Factors(1.0, 0.1, 0.0), clock_of(config.device)
    one = lambda: engine.accumulate([range(samples)], lambda _: tokens, factors, figures)  # noqa: E731

    return lambda: timed(clock, one)


def probe_config(model: dict[str, Any], length: int, precision: str, kind: str, samples: int = 1) -> PretrainConfig:
    """A job of such a model that reads nothing."""
    return PretrainConfig.model_validate(
        {
            "model": {"vocab_size": 64, "n_layers": 1, "n_dense": 1, "mtp_depth": 0, **model},
            "data": {"corpus": "none", "seq_len": length},
            "batch": {"global_batch": samples, "micro_batch": samples},
            "precision": precision,
            "device": kind,
        }
    )
