"""The cells that `benchmarks/plan_time.py` measures: models, layouts, and what a rank does in a step of them."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.pipeline.pipeline import Pipeline
from shoal_workloads.parallel.schedule.actions import Pair
from shoal_workloads.replica import PretrainShard
from tests.support import layouts_world, synthetic

__all__ = ["LAYOUTS", "MODELS", "Layout", "Measured", "job", "measured", "profiled"]


@dataclass(frozen=True)
class Layout:
    """`cells` of `workers`, each a process of one thread; `parallel`: as in a job file."""

    workers: int = 1
    cells: int = 1
    parallel: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Of a rank, seconds of each step: `phases`, one after the other; `actions`: of a pipeline's, by kind, and their
    number."""

    walls: list[float]
    phases: dict[str, list[float]]
    actions: dict[str, tuple[float, int]]


SCHEDULES = ("1f1b", "interleaved", "zb1p", "zbv", "dualpipe", "dualpipev")
LAYOUTS = {
    "one worker": Layout(),
    "2 cells": Layout(cells=2),
    "fsdp 2": Layout(2),
    "fsdp 2 reshard": Layout(2, parallel={"reshard_after_forward": True, "reduce_once": True}),
    "ep 2": Layout(2, parallel={"ep": 2}),
    **{f"pp 2 {name}": Layout(2, parallel={"pp": 2, "schedule": name}) for name in SCHEDULES},
}

MODELS: dict[str, dict[str, Any]] = {
    "dense": {
        "model": {"d_model": 384, "n_layers": 6, "n_dense": 5, "n_heads": 6, "d_head": 48, "d_rope": 16, "d_v": 64}
        | {"d_kv": 128, "d_q": None, "n_experts": 4, "n_shared": 0, "top_k": 1, "d_expert": 512, "d_ffn": 1024}
        | {"n_groups": 1, "topk_groups": 1, "mtp_depth": 0, "vocab_size": 1024},
        "data": {"seq_len": 128},
        "batch": {"global_batch": 16, "micro_batch": 2},
    },
    "experts": {
        "model": {"d_model": 256, "n_layers": 5, "n_dense": 1, "n_heads": 4, "d_head": 32, "d_rope": 16, "d_v": 32}
        | {"d_kv": 64, "d_q": None, "n_experts": 16, "n_shared": 2, "top_k": 4, "d_expert": 192, "d_ffn": 768}
        | {"n_groups": 4, "topk_groups": 2, "mtp_depth": 0, "vocab_size": 2048},
        "data": {"seq_len": 256},
        "batch": {"global_batch": 8, "micro_batch": 1},
    },
    "mtp": {
        "model": {"d_model": 192, "n_layers": 7, "n_dense": 1, "n_heads": 6, "d_head": 32, "d_rope": 16, "d_v": 32}
        | {"d_kv": 96, "d_q": 96, "n_experts": 8, "n_shared": 1, "top_k": 2, "d_expert": 256, "d_ffn": 512}
        | {"n_groups": 4, "topk_groups": 2, "mtp_depth": 1, "vocab_size": 512},
        "data": {"seq_len": 512},
        "batch": {"global_batch": 8, "micro_batch": 1},
    },
}


def job(model: dict[str, Any], layout: Layout) -> PretrainConfig:
    """Pipelines are timed in every step."""
    return synthetic.tiny(**model, parallel={"timed_every": 1, **layout.parallel})


class Uniform(synthetic.SyntheticSamples):
    """Tokens of the whole vocabulary, each as often: experts get about as many rows."""

    vocabulary = 2

    def tokens(self, ids: Sequence[int]) -> torch.Tensor:
        rows = [np.random.default_rng(i).integers(self.vocabulary, size=self.seq_len + 1) for i in ids]
        return torch.from_numpy(np.stack(rows))


def build(config: PretrainConfig) -> PretrainShard:
    replica = synthetic.build(config)
    samples: Any = Uniform("", config.data.seq_len, config.data.seed, config.device)
    samples.vocabulary = config.model.vocab_size
    replica._train = samples
    return replica


class Clock:
    """Seconds of what is done one after the other, by name."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        self.found[name], self._last = now - self._last, now


def step(replica: PretrainShard, place: layouts_world.Place, number: int) -> dict[str, float]:
    """What a worker of `shoal train` does in a step (`shoal.worker.step`), and how long: its share of the batch, its
    sums, their sum across cells, the vote, the commit."""
    config, clock = replica.config, Clock()
    one = place.workers * config.batch.micro_batch
    count, first = config.batch.global_batch // one, number * config.batch.global_batch
    coming = [range(first + m * one, first + (m + 1) * one) for m in range(place.cell, count, place.cells)]
    replica.begin(number)
    replica.expect([coming])
    replica.accumulate(coming)
    clock("accumulate")
    total = replica.sums_to_keep()
    clock("sums")
    place.add(total)
    clock("across")
    words = place.add(torch.tensor(replica.stats(), dtype=torch.float64))
    if place.workers > 1:
        dist.all_reduce(words)
    norm = torch.tensor([replica.norm_sq(total)], dtype=torch.float64)
    if place.workers > 1:
        dist.all_reduce(norm)
    clock("vote")
    replica.commit(total, words.tolist(), float(norm))
    clock("commit")
    return clock.found


def met(place: layouts_world.Place) -> None:
    """Wait for all ranks of all cells."""
    place.add(torch.zeros(1))
    if place.workers > 1:
        dist.barrier()


def measured(config: PretrainConfig, layout: Layout, steps: int, folder: str) -> Measured | None:
    """`steps` steps after one that does not count; none on a rank that is not needed."""
    torch.set_num_threads(1)
    place = layouts_world.enter(layout.workers, layout.cells, folder)
    if place is None:
        return None
    replica = build(config)
    walls, phases = list[float](), defaultdict[str, list[float]](list)
    seconds, number = defaultdict[str, float](float), Counter[str]()
    for at in range(steps + 1):
        met(place)
        start = time.monotonic()
        found = step(replica, place, at)
        if at == 0:
            continue
        walls.append(time.monotonic() - start)
        for name, took in found.items():
            phases[name].append(took)
        for record in replica.engine.records if isinstance(replica.engine, Pipeline) else []:
            kind = "pair" if isinstance(record.step, Pair) else record.step.kind
            seconds[kind] += record.end - record.start
            number[kind] += 1
    return Measured(walls, dict(phases), {kind: (seconds[kind] / steps, number[kind] // steps) for kind in seconds})


def profiled(config: PretrainConfig, layout: Layout, folder: str) -> dict[str, float] | None:
    """Seconds of one step of this rank by operator, its own without what it calls (torch's profiler adds some)."""
    torch.set_num_threads(1)
    place = layouts_world.enter(layout.workers, layout.cells, folder)
    if place is None:
        return None
    replica = build(config)
    step(replica, place, 0)
    met(place)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(replica, place, 1)
    return {event.key: event.self_cpu_time_total / 1e6 for event in profile.key_averages()}


def wall(ranks: Sequence[Measured | None]) -> float:
    """Median over the steps of the slowest rank's."""
    there = [rank.walls for rank in ranks if rank is not None]
    return statistics.median(max(walls) for walls in zip(*there, strict=True))
