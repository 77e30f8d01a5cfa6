"""How long a step of a run takes, and what of a GPU's memory: from a job's own config, its layout and the hardware."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate import messages
from shoal_workloads.estimate.commit import committed, per_byte
from shoal_workloads.estimate.hardware import Hardware
from shoal_workloads.estimate.layer import Layers, Seconds, total
from shoal_workloads.estimate.learned import corrected, grown
from shoal_workloads.estimate.measured import layers_of
from shoal_workloads.estimate.moved import BF16, FP32
from shoal_workloads.flops import token_flops
from shoal_workloads.footprint import Footprint, footprints, over_step
from shoal_workloads.parallel.fits import settled
from shoal_workloads.parallel.schedule import (
    Schedule,
    Step,
    Timeline,
    actions_of,
    schedule_of,
    simulate,
)
from shoal_workloads.parallel.schedule.actions import Pair
from shoal_workloads.parallel.schedule.balance import stage_layers

__all__ = ["WAITING", "Cluster", "Engine", "Estimate", "Piped", "by_kind", "estimate", "memory_over_step", "shared"]

WAITING = 0.035
"""Fitted on the bubble of DeepSeek-V3's step, 2.06 s, of which the schedule explains about half: of a step's time, what
workers wait for each other besides (rows that experts do not get equally, GPUs that are not equally fast)."""


@dataclass(frozen=True)
class Cluster:
    """`nodes` of `slots` GPUs of one kind."""

    nodes: int
    slots: int
    name: str
    hardware: Hardware

    @property
    def workers(self) -> int:
        return self.nodes * self.slots


@dataclass(frozen=True)
class Engine:
    """What an engine of others does otherwise than this product's. `micro_batches`: of a chain; none: as the cells here
    are given them. `head_in_backward`: gradients of the output head are made with those of its stage's input, not at
    once in the forward pass."""

    micro_batches: int | None = None
    head_in_backward: bool = False

    def head(self, kind: str) -> str:
        """What of the head is made in actions of this kind."""
        if not self.head_in_backward:
            return "FIW" if kind == "F" else ""
        return {"F": "F", "B": "IW", "I": "IW", "W": ""}[kind]


OURS = Engine()


class Exchange(NamedTuple):
    """Seconds in which a step's rows travel: behind what is computed, and while nothing is."""

    hidden: float
    exposed: float


class Piped(NamedTuple):
    """The schedule of a chain's step, when its ranks do what, in seconds, and the exchange of each `timeline.spans`."""

    schedule: Schedule
    timeline: Timeline
    exchange: Sequence[Sequence[Exchange]]


@dataclass(frozen=True)
class Estimate:
    """What a step takes. `memory`: of the worker that needs most; `step`: seconds by what takes them, on average over
    the pipeline's ranks; `phases`: the same by the kind of action, where there is a pipeline: F, I (the gradient of the
    input alone), B, W, pair, idle; `samples`: of a step; `cells` of `mesh`, one of which has at most `micro_batches` to
    do."""

    config: PretrainConfig
    cluster: Cluster
    mesh: Mesh
    cells: int
    micro_batches: int
    memory: Footprint
    step: Mapping[str, float]
    phases: Mapping[str, float]
    samples: int
    pipeline: Piped | None = None

    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes of the worker that needs most."""
        return self.memory.parts

    @property
    def peak(self) -> int:
        """Their sum."""
        return self.memory.total

    @property
    def layout(self) -> Mapping[str, Any]:
        """Cells, and what of `workload.parallel` says how they share the model."""
        parallel, mesh = self.config.parallel, self.mesh
        return {
            "cells": self.cells, "workers_per_cell": mesh.workers, "pp": mesh.pp, "fsdp": mesh.fsdp, "ep": mesh.ep,
            "schedule": parallel.schedule if mesh.pp > 1 else None, "recompute": parallel.recompute,
            "waiting": parallel.waiting, "reshard_after_forward": parallel.reshard_after_forward,
            "micro_batches": self.micro_batches,
        }  # fmt: skip

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.cluster.hardware.memory_gb * 1e9

    @property
    def seconds(self) -> float:
        return sum(self.step.values())

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.samples * self.config.data.seq_len

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Share of bf16's peak that goes into what the model needs, MTP modules and the head among it, with causal
        attention: `flops.token_flops`."""
        flops = self.tokens * token_flops(self.config.model, self.config.data.seq_len)
        return flops / (self.seconds * self.cluster.workers * self.cluster.hardware.tflops.bf16 * 1e12)


def estimate(
    config: PretrainConfig, cluster: Cluster, workers: int, cells: int | None = None, engine: Engine = OURS
) -> Estimate:
    """A step of `config` in so many `cells` of `workers` on a cluster; none: as many as it has room for.

    Raises:
        UserError: there is no room for one, or a step cannot be cut for it.
    """
    mesh = Mesh.of({"pp": config.parallel.pp, "ep": config.parallel.ep}, workers)
    config = settled(config, workers)
    samples = config.batch.global_batch
    cells, most = shared(samples, config.batch.micro_batch, cluster, workers, cells)
    layers = layers_of(config, mesh, cluster.hardware, cluster.slots, cells)
    memory = footprints(config, workers)
    if mesh.pp == 1:
        step, phases, pipeline = flat(config, mesh, cluster, layers, most, memory[0]), dict[str, float](), None
    else:
        chains = engine.micro_batches or most * mesh.pp
        step, phases, pipeline = piped(config, mesh, cluster, layers, chains, engine)
    if (lines := messages.lines_of(cluster.hardware)) and cells > 1:
        step["waiting"] = step.get("waiting", 0.0) + messages.drifted(lines, 1, sum(step.values()))
    elif cells * workers > 1 and not lines:
        step["waiting"] = WAITING / (1 - WAITING) * sum(step.values())
    step |= committed(config, cluster, mesh, cells, memory, pipeline and pipeline.schedule)
    biggest = max(memory, key=lambda one: one.total)
    return corrected(Estimate(config, cluster, mesh, cells, most, biggest, step, phases, samples, pipeline))


def shared(samples: int, micro_batch: int, cluster: Cluster, workers: int, cells: int | None = None) -> tuple[int, int]:
    """How many cells of `workers` share the samples of a step (`cells`, or as many as there is room for), and how many
    micro-batches a worker of the cell that has most is given; in a pipeline each chain is.

    Raises:
        UserError: there is no room for them, or a step cannot be cut for them.
    """
    each = workers * micro_batch
    count, rest = divmod(samples, each)
    if rest:
        raise UserError(
            f"global_batch: {samples} samples cannot be cut for cells of {workers} workers, {each} at once",
            f"a multiple of {each}, or smaller cells",
        )
    room = min(cluster.workers // workers, count)
    if not room:
        raise UserError(
            f"--cluster: {cluster.workers} GPUs make no cell of {workers}", "more nodes, or smaller cells (pp, ep)"
        )
    if cells is not None and cells > room:
        raise UserError(
            f"{cells} cells of {workers} workers: {cluster.workers} GPUs, and a batch that has {count} shares for such "
            f"cells, are enough for {room}",
            f"cells={room}, more nodes, or a larger batch",
        )
    found = cells or room
    return found, -(-count // found)


# ---- a pipeline


def piped(
    config: PretrainConfig,
    mesh: Mesh,
    cluster: Cluster,
    layers: Layers,
    micro_batches: int,
    engine: Engine = OURS,
) -> tuple[dict[str, float], dict[str, float], Piped]:
    """A step of a chain by its schedule: what its ranks do on average, by what takes the time and by kind of action;
    and when."""
    parallel, model = config.parallel, config.model
    schedule = schedule_of(parallel, micro_batches)
    ranges = stage_layers(model, schedule.stages, config.data.seq_len)
    final = schedule.stages - 1
    lines = messages.lines_of(cluster.hardware)
    message = lines.send.seconds(FP32 * layers.tokens * model.d_model) if lines else 0.0

    @cache
    def stage(number: int, kind: str) -> Seconds:
        """Of one of a stage's actions, I and W apart."""
        passes = {"F": layers.forward, "B": layers.backward, "I": layers.input, "W": layers.weight}
        one: Callable[..., Seconds] = passes[kind]
        parts = [one(dense=i < model.n_dense) for i in ranges[number]]
        if number == final:
            parts += [one(dense=False)] * model.mtp_depth
            parts += [layers.head(engine.head(kind))]
            parts += [layers.merge("IW" if kind == "B" else kind)]
        return added(parts)

    @cache
    def parts_of(numbers: tuple[tuple[int, str], ...], pair: bool) -> Seconds:
        """Of a step: the exchange is hidden by what computes at the same time, of a pair; else by shared experts."""
        found = added(stage(number, kind) for number, kind in numbers)
        exchange, computed = found.get("exchange", 0.0), total(found, but="exchange")
        moe = {number: sum(i >= model.n_dense for i in ranges[number]) for number, _ in numbers}
        passes = {"F": 1, "B": 1, "I": 1, "W": 0}
        beside = computed if pair else sum(layers.beside(passes[kind] * moe[number]) for number, kind in numbers)
        return {**found, "exchange": exchange if lines else max(0.0, exchange - beside)}

    def exchanged(step: Step) -> Exchange:
        every = sum(stage(one.stage, one.kind).get("exchange", 0.0) for one in actions_of(step))
        exposed = parts(step).get("exchange", 0.0)
        return Exchange(every - exposed, exposed)

    def parts(step: Step) -> Seconds:
        numbers = [(one.stage, one.kind) for one in actions_of(step)]
        found = parts_of(tuple(numbers), isinstance(step, Pair))
        sent = sum(messages.sends(schedule, one) for one in actions_of(step)) if message else 0
        return {**found, "send": message * sent} if sent else found

    done = simulate(schedule, lambda step: total(parts(step)))
    # fewer micro-batches than the schedule takes are not made up
    share = micro_batches / schedule.micro_batches / mesh.pp
    step = added(parts(span.step) for rank in done.spans for span in rank)
    phases = by_kind(done)
    bubble = sum(done.idle) / mesh.pp
    return (
        {**{name: seconds * share for name, seconds in step.items()}, "bubble": bubble},
        phases,
        Piped(schedule, done, [[exchanged(span.step) for span in rank] for rank in done.spans]),
    )


def memory_over_step(found: Estimate) -> list[tuple[float, Mapping[str, int]]]:
    """What the worker that needs most holds, by part, and from when on in the step (seconds); without a pipeline what
    it holds when that is most. The last moment is the commit's."""
    if found.pipeline is None:
        return [(0.0, found.memory.parts)]
    (schedule, timeline, _), place = found.pipeline, found.memory.place
    held = over_step(found.config, found.mesh.workers, place, schedule)
    times = [time for span in timeline.spans[place] for time in (span.start, span.end)]
    learned = found.cluster.hardware.learned
    if learned is not None:
        held = [grown(parts, learned.memory) for parts in held]
    return list(zip([*times, timeline.makespan], held, strict=True))


def by_kind(done: Timeline, rank: int | None = None) -> dict[str, float]:
    """Seconds of a rank; none: on average."""
    chosen = range(len(done.spans)) if rank is None else [rank]
    spans = [span for one in chosen for span in done.spans[one]]
    kinds = ["pair" if isinstance(span.step, Pair) else span.step.kind for span in spans]
    found = added({kind: span.end - span.start} for kind, span in zip(kinds, spans, strict=True))
    found["idle"] = sum(done.idle[one] for one in chosen)
    return {kind: seconds / len(chosen) for kind, seconds in found.items()}


# ---- without one


def flat(
    config: PretrainConfig, mesh: Mesh, cluster: Cluster, layers: Layers, micro_batches: int, memory: Footprint
) -> dict[str, float]:
    """A step of a cell without a pipeline: see `parallel.fsdp`. Parameters are gathered, and gradients reduced, behind
    what computes."""
    model, parallel = config.model, config.parallel
    blocks = [i < model.n_dense for i in range(model.n_layers)] + [False] * model.mtp_depth
    parts = [one(dense=dense) for dense in blocks for one in (layers.forward, layers.backward)]
    each = added([*parts, layers.head(), layers.merge()])
    lines = messages.lines_of(cluster.hardware)
    if not lines:
        each["exchange"] = max(0.0, each.get("exchange", 0.0) - layers.beside(2 * blocks.count(False)))
    step = {name: seconds * micro_batches for name, seconds in each.items()}
    if mesh.workers > 1:
        width = FP32 if config.precision == "fp32" else BF16
        whole = memory.parts["master parameters"] / FP32 * mesh.workers  # experts that others hold are not gathered
        elsewhere = (mesh.ep - 1) / mesh.ep if mesh.fsdp > 1 else 1.0  # whole experts lie where they are used
        own = whole - elsewhere * expert_parameters(config)
        moved = width * own * (2 if parallel.reshard_after_forward else 1)
        reduced = FP32 * own
        if lines:
            computed = total(step, but="exchange")
            step["waiting"] = messages.waiting(lines, config, mesh, computed, micro_batches)
            step["gather and reduce"] = messages.fsdp(lines, config, mesh, moved, reduced, micro_batches)
            return step
        often = 1 if parallel.reduce_once is True else micro_batches
        seconds = (moved * micro_batches + reduced * often) * per_byte(cluster, mesh.workers)
        step["gather and reduce"] = max(0.0, seconds - sum(step.values()))
    return step


def expert_parameters(config: PretrainConfig) -> float:
    model = config.model
    return 3.0 * model.d_model * model.d_expert * model.n_experts * (model.n_moe + model.mtp_depth)


def added(parts: Iterable[Seconds]) -> dict[str, float]:
    """The sum, by what takes it."""
    found: dict[str, float] = {}
    for one in parts:
        for name, seconds in one.items():
            found[name] = found.get(name, 0.0) + seconds
    return found
