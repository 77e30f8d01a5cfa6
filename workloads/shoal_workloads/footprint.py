"""What a worker's part of a run takes of a GPU's memory, by part, in closed form: nothing is built.

One arithmetic for whoever must know it: preflight refuses by it what does not fit, and a planner may compare layouts
by it. Two moments of a step count: while it computes (activations, the loss, a layer at work, rows under way), and
while it is summed up and committed (gradients once more as one flat tensor). What is held all the time and what a layer
keeps is counted by tests; `CONTEXT`, `COMMUNICATORS` and `SPARE` are assumptions. Rows of experts are those of the
worker that gets most, at a quantile: see `routing`. Widths: see `params`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shoal_core.mesh import Mesh
from shoal_workloads.activations import FP32
from shoal_workloads.config import PretrainConfig
from shoal_workloads.in_flight import InFlight
from shoal_workloads.parallel.schedule import Schedule, schedule_of
from shoal_workloads.parallel.schedule.balance import stage_layers
from shoal_workloads.parallel.zero import BUCKET
from shoal_workloads.params import count_parameters
from shoal_workloads.routing import busiest

__all__ = ["COMMUNICATORS", "CONTEXT", "GB", "SPARE", "Footprint", "footprint", "footprints", "over_step"]

GB = 10**9
CONTEXT = 1 * GB
"""The driver's context, kernels, workspaces of libraries."""
COMMUNICATORS = 3 * GB // 2
"""Buffers of NCCL: the cell's world, experts, holders of parameters, pipeline neighbours, groups across cells."""
SPARE = 0.03
"""Of all the rest, that the allocator cannot use."""
FLAT = 1
"""Copies of a worker's gradients, float32, when a step commits: the total over cells, which is scaled in place."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a worker on pipeline rank `place`, by part, at the moment of a step when they are most."""

    place: int
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def words(self) -> str:
        """The parts, largest first: "activations: attention 12.3, gradients 10.1"."""
        sizes = sorted(self.parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / GB:.1f}" for name, size in sizes if size >= GB // 20)


@dataclass(frozen=True)
class _Weights:
    """Parameters of a kind that a worker computes with: how many, bytes of each, and how many workers share the masters
    of the same ones. `codes`: those multiplied in FP8, where that is asked for."""

    count: int
    width: int
    holders: int
    codes: int = 0

    @property
    def masters(self) -> int:
        return -(-self.count // self.holders)


def footprint(config: PretrainConfig, workers: int) -> Footprint:
    """Of the worker of a cell of `workers` that needs most."""
    return max(footprints(config, workers), key=lambda one: one.total)


def footprints(config: PretrainConfig, workers: int) -> list[Footprint]:
    """Of a worker on every pipeline rank of a cell of `workers`, for a layout that `check_layout` lets pass."""
    mesh = Mesh.of({"pp": config.parallel.pp, "ep": config.parallel.ep}, workers)
    one = _Sizes(config, mesh)
    return [one.fsdp()] if mesh.pp == 1 else [one.stage(place) for place in range(mesh.pp)]


class _Sizes:
    """The sizes of one job in cells of `mesh`, from which the parts of each worker are counted. `width`: bytes of a
    number while it computes; `load`: rows of the busiest worker's experts, of the mean."""

    def __init__(self, config: PretrainConfig, mesh: Mesh) -> None:
        self.config, self.mesh, self.model = config, mesh, config.model
        self.width = FP32 if config.precision == "fp32" else 2
        self.count = count_parameters(config.model)
        self.sequences, self.length = config.batch.micro_batch, config.data.seq_len
        self.load = busiest(config.routing, self.model, mesh.ep, mesh.ep * self.sequences, self.length)
        self.in_flight = InFlight(config, mesh, self.load)

    # ---- what is held all the time

    def layer(self, *, dense: bool, holders: int) -> Iterator[_Weights]:
        """A layer's; `holders`: workers that compute with the same, of experts as many as there are expert groups."""
        model, count = self.model, self.count
        router = 0 if dense else model.n_experts * model.d_model
        ffn = count.dense_ffn if dense else model.n_shared * count.expert
        yield self.multiplied(count.attention + ffn, holders)
        yield _Weights(count.norms + router, FP32, holders)
        if not dense:
            held = model.n_experts // self.mesh.ep * count.expert
            yield self.multiplied(held, holders // self.mesh.ep)

    def multiplied(self, count: int, holders: int) -> _Weights:
        return _Weights(count, self.width, holders, codes=count if self.config.precision == "fp8" else 0)

    def end(self, holders: int) -> Iterator[_Weights]:
        """The last stage's, less its layers."""
        d = self.model.d_model
        yield _Weights(self.count.embedding, self.width, holders)
        yield _Weights(d, FP32, holders)
        for _ in range(self.model.mtp_depth):
            yield self.multiplied(2 * d * d, holders)
            yield _Weights(3 * d, FP32, holders)
            yield from self.layer(dense=False, holders=holders)

    def masters(self, weights: list[_Weights]) -> dict[str, int]:
        mine = sum(one.masters for one in weights)
        moment = FP32 if self.config.optim.moments == "fp32" else 2
        return {"master parameters": FP32 * mine, "moments": 2 * moment * mine}

    def outside(self) -> dict[str, int]:
        return {"context": CONTEXT, "communicators": COMMUNICATORS if self.mesh.workers > 1 else 0}

    # ---- the two engines

    def fsdp(self) -> Footprint:
        """Without pipeline stages: see `parallel.fsdp`."""
        mesh, model, parallel = self.mesh, self.model, self.config.parallel
        blocks = [list(self.layer(dense=i < model.n_dense, holders=mesh.workers)) for i in range(model.n_layers)]
        root = [_Weights(self.count.embedding, self.width, mesh.workers), *self.end(mesh.workers)]
        weights = [one for block in [*blocks, root] for one in block]
        gathered = [[one for one in block if one.holders > 1 or self.width < FP32] for block in [*blocks, root]]
        sizes = [sum(one.count * self.width for one in block) for block in gathered]
        together = sizes[-1] + sum(sorted(sizes[:-1])[-2:]) if parallel.reshard_after_forward else sum(sizes)
        shards = sum(one.masters for one in weights)
        largest = max(sum(one.count for one in block) for block in blocks) if mesh.workers > 1 else 0
        whole = sum(one.count for one in weights if one.holders > 1) if parallel.reduce_once is True else 0
        always = {**self.masters(weights), "parameters": together, **self.outside()}
        computing = {
            **always,
            "gradients": FP32 * shards + largest * (self.width + FP32),
            "gradients, not reduced yet": FP32 * whole,  # between two micro-batches of one call
            **self.in_flight.whole(range(model.n_layers)),
        }
        committing = {**always, "gradients": FP32 * shards, "gradients, flat": FLAT * FP32 * shards}
        return _larger(0, computing, committing)

    def stage(self, place: int) -> Footprint:
        """Of a pipeline: see `parallel.pipeline` and `parallel.zero`."""
        schedule = schedule_of(self.config.parallel, self._micro_batches())
        layers = stage_layers(self.model, schedule.stages, self.length)
        computing, committing = self.moments(place, schedule, layers)
        return _larger(place, {**computing, **self.in_flight.most(schedule, place, layers)}, committing)

    def moments(self, place: int, schedule: Schedule, layers: Sequence[range]) -> tuple[dict[str, int], dict[str, int]]:
        """While it computes, less what is in flight; and while it commits."""
        mesh = self.mesh
        weights, final = list[_Weights](), schedule.stages - 1
        for stage in schedule.stages_of(place):
            holders = len(schedule.holders(stage)) * mesh.per_stage
            for i in layers[stage]:
                weights += self.layer(dense=i < self.model.n_dense, holders=holders)
            if stage == final:
                weights += self.end(holders)
        readers = {0, final} if self.model.mtp_depth else {0}
        embedders = {rank for stage in readers for rank in schedule.holders(stage)}
        if place in embedders:
            weights.append(_Weights(self.count.embedding, self.width, len(embedders) * mesh.per_stage))
        always = {
            "parameters": sum(one.count * one.width for one in weights),
            "parameters in FP8": sum(one.codes for one in weights),
            "gradients": sum(one.count * FP32 for one in weights),
            **self.masters(weights),
            **self.outside(),
        }
        mine = sum(one.masters for one in weights)
        bucket = 2 * FP32 * max(BUCKET, self.count.embedding if place in embedders else 0)
        return always, {**always, "gradients, flat": FLAT * FP32 * mine, "bucket": bucket}

    def _micro_batches(self) -> int:
        """Of a chain: enough to see the most that are in flight."""
        pp = self.mesh.pp
        first, end = self.config.batch.samples(0, self.length)
        found = (end - first) // (self.mesh.workers * self.sequences) * pp
        return min(max(found, pp), 4 * pp)


def over_step(config: PretrainConfig, workers: int, place: int, schedule: Schedule) -> list[dict[str, int]]:
    """Bytes of a worker on pipeline rank `place`, by part, within and after each step of its order; the moment of the
    commit comes last."""
    mesh = Mesh.of({"pp": config.parallel.pp, "ep": config.parallel.ep}, workers)
    one = _Sizes(config, mesh)
    layers = stage_layers(config.model, schedule.stages, config.data.seq_len)
    computing, committing = one.moments(place, schedule, layers)
    walked = [_spared({**computing, **moment}) for moment in one.in_flight.walked(schedule, place, layers)]
    return [*walked, _spared(committing)]


def _larger(place: int, *moments: Mapping[str, int]) -> Footprint:
    """The moment that takes most, with what the allocator cannot use."""
    return Footprint(place, _spared(max(moments, key=lambda parts: sum(parts.values()))))


def _spared(parts: Mapping[str, int]) -> dict[str, int]:
    """With what the allocator cannot use."""
    return {**parts, "spare": int(SPARE * sum(parts.values()))}
