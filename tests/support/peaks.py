"""Bytes that one rank of a pipeline holds over a step, measured: it walks its real order beside neighbours that are not
there. On a CPU by torch's allocator, as its profiler tells; on the meta device by following every memory that operators
make, which is how the branches of a GPU are seen without one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.in_flight import InFlight
from shoal_workloads.parallel.engine import Factors, Figures
from shoal_workloads.parallel.pipeline import executor, pipeline
from shoal_workloads.parallel.pipeline.pipeline import Pipeline
from shoal_workloads.parallel.schedule import schedule_of
from shoal_workloads.parallel.schedule.balance import stage_layers
from shoal_workloads.precision.fp8 import EmulatedFp8
from shoal_workloads.precision.products import Products

Sizes = list[tuple[int, int]]
"""Of each step of an order the most bytes within it, and those after it."""


class _Done:
    def wait(self) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class _Neighbours:
    """Other ranks of the chain: what they send has some value."""

    def send(self, transfer: Any, tensor: torch.Tensor) -> Any:
        return _Done()

    def receive(self, transfer: Any, buffer: torch.Tensor) -> Any:
        buffer.normal_()
        return _Done()


class _Live(TorchDispatchMode):
    """Bytes of all memory that operators inside made and that somebody still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), given)
        return out

    def _add(self, storage: Any, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._seen.get(key)
        if (known is not None and known() is storage) or id(storage) in given:
            return

        def gone(_: object) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def job(schedule: str, pp: int, recompute: Any, precision: str, **model: Any) -> PretrainConfig:
    """Of a layer a stage and one more, 128 positions; twice as many micro-batches as ranks."""
    stages = pp if schedule in ("1f1b", "zb1p", "dualpipe") else 2 * pp
    widths = {"vocab_size": 512, "d_model": 256, "n_layers": stages + 1, "n_dense": 1, "d_ffn": 512, "mtp_depth": 1}
    heads = {"n_heads": 4, "d_head": 32, "d_rope": 16, "d_v": 32, "d_kv": 128, "d_q": 128}
    experts = {"n_experts": 8, "n_shared": 1, "top_k": 2, "d_expert": 128}
    sections = {
        "model": {**widths, **heads, **experts, **model},
        "data": {"corpus": "none", "seq_len": 128},
        "batch": {"global_batch": 2 * pp, "micro_batch": 1},
        "parallel": {"pp": pp, "schedule": schedule, "recompute": recompute},
        "precision": precision,
        "device": "cpu",
    }
    return PretrainConfig.model_validate(sections)


def predicted(config: PretrainConfig, place: int) -> Sizes:
    """In closed form."""
    pp = config.parallel.pp
    schedule = schedule_of(config.parallel, config.batch.global_batch)
    layers = stage_layers(config.model, schedule.stages, config.data.seq_len)
    one = InFlight(config, Mesh.of({"pp": pp, "ep": 1}, pp))
    totals = [sum(parts.values()) for parts in one.walked(schedule, place, layers)]
    return list(zip(totals[::2], totals[1::2], strict=True))


def measured(config: PretrainConfig, place: int, monkeypatch: pytest.MonkeyPatch) -> Sizes:
    """By the allocator, or on the meta device, if that is the config's."""
    pp = config.parallel.pp
    dist.init_process_group("fake", store=FakeStore(), rank=place, world_size=pp)
    try:
        monkeypatch.setattr(pipeline, "make_channels", lambda *_: [])
        products = EmulatedFp8() if config.precision == "fp8" else Products()
        dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
        engine = Pipeline(config, place, pp, dtype, products)
        for block in engine.model.blocks():
            block.recompute = config.parallel.recompute
        for shard in engine.shards:
            torch.nn.init.normal_(shard.local, 0.0, 0.05)
        engine.begin(0)
        engine.updated()
        monkeypatch.setattr(engine, "_wires", _Neighbours())
        _step(engine, config)  # gradients and tables that stay are there from now on
        return (
            _traced(engine, config, monkeypatch) if config.device == "meta" else _profiled(engine, config, monkeypatch)
        )
    finally:
        dist.destroy_process_group()


def _step(engine: Pipeline, config: PretrainConfig) -> None:
    pp, length, model = config.parallel.pp, config.data.seq_len, config.model
    ids = [range(first, first + pp) for first in range(0, config.batch.global_batch, pp)]
    loads = torch.zeros(model.n_routers, model.n_experts, dtype=torch.int64, device=config.device)

    def read(some: Sequence[int]) -> torch.Tensor:
        return torch.randint(0, model.vocab_size, (len(some), length + 1), device=config.device)

    engine.accumulate(ids, read, Factors(1.0, 0.1, 0.1), Figures(loads))


def _traced(engine: Pipeline, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> Sizes:
    live, found, take = _Live(), Sizes(), executor.Executor._take

    def watched(self: executor.Executor, turn: Any, beside: Any) -> None:
        live.most = live.now
        take(self, turn, beside)
        found.append((live.most, live.now))

    monkeypatch.setattr(executor.Executor, "_take", watched)
    with live:
        _step(engine, config)
    return found


def _profiled(engine: Pipeline, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> Sizes:
    take = executor.Executor._take

    def watched(self: executor.Executor, turn: Any, beside: Any) -> None:
        with record_function("turn"):
            take(self, turn, beside)

    monkeypatch.setattr(executor.Executor, "_take", watched)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        _step(engine, config)
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    found, end, now = Sizes(), 0, 0
    events = sorted(_every(seen.profiler.kineto_results.experimental_event_tree()), key=lambda one: one.start_time_ns)
    for event in events:
        if event.tag.name == "Allocation":
            now += event.extra_fields.alloc_size
            if found and event.start_time_ns <= end:
                found[-1] = (max(found[-1][0], now), now)
        elif event.name == "turn":
            found.append((now, now))
            end = event.start_time_ns + event.duration_time_ns
    return found


def _every(events: Any) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _every(event.children)
