"""What a worker's part of a run takes of a GPU's memory, by part, in closed form: nothing is built.

One arithmetic for whoever must know it: preflight refuses by it what does not fit, and a planner may compare layouts
by it. Two moments of a step count: while it computes (activations, the loss, a layer at work, rows under way), and
while it is summed up and committed (gradients once more as one flat tensor). What is held all the time and what a layer
keeps is counted by tests; `CONTEXT`, `COMMUNICATORS` and `SPARE` are assumptions. Rows of experts are those of the
worker that gets most, at a quantile: see `routing`. Widths: see `params`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shoal_core.mesh import Mesh
from shoal_workloads.activations import FP32
from shoal_workloads.config import PretrainConfig
from shoal_workloads.held import Held
from shoal_workloads.in_flight import InFlight
from shoal_workloads.parallel.schedule import Schedule, schedule_of
from shoal_workloads.parallel.schedule.balance import stage_layers
from shoal_workloads.parallel.zero import BUCKET
from shoal_workloads.routing import busiest

__all__ = ["COMMUNICATORS", "CONTEXT", "GB", "SPARE", "Footprint", "fits", "footprint", "footprints", "over_step"]

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
    averages: int = 0
    """Bytes of averages of the parameters in the CPU's memory beside a GPU."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def words(self) -> str:
        """The parts, largest first: "activations: attention 12.3, gradients 10.1"."""
        sizes = sorted(self.parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / GB:.1f}" for name, size in sizes if size >= GB // 20)


def footprint(config: PretrainConfig, workers: int) -> Footprint:
    """Of the worker of a cell of `workers` that needs most."""
    return max(footprints(config, workers), key=lambda one: one.total)


def footprints(config: PretrainConfig, workers: int) -> list[Footprint]:
    """Of a worker on every pipeline rank of a cell of `workers`, for a layout that `check_layout` lets pass."""
    return list(_each(config, workers))


def fits(config: PretrainConfig, workers: int, gb: float) -> bool:
    """Whether every worker has room in so many 10^9 bytes: looks no further once one has not."""
    return all(one.total <= gb * GB for one in _each(config, workers))


def _each(config: PretrainConfig, workers: int) -> Iterator[Footprint]:
    mesh = Mesh.of({"pp": config.parallel.pp, "ep": config.parallel.ep}, workers)
    one = _Sizes(config, mesh)
    yield from [one.fsdp()] if mesh.pp == 1 else (one.stage(place) for place in range(mesh.pp))


class _Sizes:
    """The sizes of one job in cells of `mesh`, from which the parts of each worker are counted. `width`: bytes of a
    number while it computes; `load`: rows of the busiest worker's experts, of the mean."""

    def __init__(self, config: PretrainConfig, mesh: Mesh) -> None:
        self.config, self.mesh, self.model = config, mesh, config.model
        self.width = FP32 if config.precision == "fp32" else 2
        self.held = Held(config, mesh)
        self.sequences, self.length = config.batch.micro_batch, config.data.seq_len
        self.load = busiest(config.routing, self.model, mesh.ep, mesh.ep * self.sequences, self.length)
        self.in_flight = InFlight(config, mesh, self.load)

    def outside(self) -> dict[str, int]:
        return {"context": CONTEXT, "communicators": COMMUNICATORS if self.mesh.workers > 1 else 0}

    # ---- the two engines

    def fsdp(self) -> Footprint:
        """Without pipeline stages: see `parallel.fsdp`."""
        once = self.config.parallel.reduce_once is True
        blocks, held = self.held.blocks(), self.held.flat()
        whole = [one.whole() for one in blocks]
        always = {**self.here(held), **self.outside()}
        computing = {
            **always,
            "gradients of a block": max(whole[:-1]) * (self.width + FP32),
            "gradients, not reduced yet": FP32 * sum(whole) if once else 0,  # between two micro-batches of one call
            **self.in_flight.whole(range(self.model.n_layers)),
        }
        return self.larger(0, held, computing, {**always, "gradients, flat": FLAT * held["gradients, flat"]})

    def stage(self, place: int) -> Footprint:
        """Of a pipeline: see `parallel.pipeline` and `parallel.zero`."""
        schedule = schedule_of(self.config.parallel, self._micro_batches())
        layers = stage_layers(self.model, schedule.stages, self.length)
        held = self.held.staged(place * self.mesh.per_stage, schedule, layers)
        computing, committing = self.moments(place, schedule, held)
        return self.larger(place, held, {**computing, **self.in_flight.most(schedule, place, layers)}, committing)

    def here(self, held: Mapping[str, int]) -> dict[str, int]:
        """Of what is held all the time that which lies in the device's memory."""
        elsewhere = {"gradients, flat"} | ({"averages"} if self.config.device == "cuda" else set())
        return {name: size for name, size in held.items() if name not in elsewhere}

    def larger(self, place: int, held: Mapping[str, int], *moments: Mapping[str, int]) -> Footprint:
        """The moment that takes most, with what the allocator cannot use."""
        averages = held.get("averages", 0) if self.config.device == "cuda" else 0
        return Footprint(place, _spared(max(moments, key=lambda parts: sum(parts.values()))), averages)

    def moments(self, place: int, schedule: Schedule, held: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
        """While it computes, less what is in flight; and while it commits."""
        always = {**self.here(held), **self.outside()}
        embedding = self.model.vocab_size * self.model.d_model if self.held.embeds(place, schedule) else 0
        bucket = 2 * FP32 * max(BUCKET, embedding)
        return always, {**always, "gradients, flat": FLAT * held["gradients, flat"], "bucket": bucket}

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
    held = one.held.staged(place * mesh.per_stage, schedule, layers)
    computing, committing = one.moments(place, schedule, held)
    walked = [_spared({**computing, **moment}) for moment in one.in_flight.walked(schedule, place, layers)]
    return [*walked, _spared(committing)]


def _spared(parts: Mapping[str, int]) -> dict[str, int]:
    """With what the allocator cannot use."""
    return {**parts, "spare": int(SPARE * sum(parts.values()))}
