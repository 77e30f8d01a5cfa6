"""What a shape is worth and what it costs to get there: a model that is said here in full, with its assumptions.

A step's time is counted in micro-batches of one worker (one worker that takes one through the whole model: 1). A cell
of `mesh.workers` takes its micro-batches of a step one after the other, so a step lasts as long as the cell that has
most of them; a pipeline fills and empties once a step; rows that go to other workers' experts, and parameters that are
gathered, take a share of every micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import expm1, inf

from shoal.saving.interval import PRIOR
from shoal_core.mesh import Mesh

__all__ = ["Costs", "Load", "busy", "holds", "lost", "speed", "step_of", "undone"]


@dataclass(frozen=True)
class Costs:
    """Seconds, bytes and shares, as they are assumed; what a run has seen itself takes their place (`seen.learnt`).
    `exchange` and `gather` part shapes that use as many workers, and are never by themselves a reason to reshape."""

    state_bytes: float
    """Of a whole replica's state: parameters, moments, averages. 0: not known."""
    bandwidth: float = 1e9
    """Bytes a second that a worker receives, or gives."""
    leave: float = 1.0
    """Seconds to end a generation, build the new cells' worlds and begin the next, but for what filling them takes and
    for the steps that are trained meanwhile."""
    horizon: float = 3600.0
    """Seconds for which a new shape is counted on: work lost in getting there must come back within them."""
    worth: float = 0.002
    """Share of the present work by which a new shape must do more within the horizon."""
    experts: float = 0.9
    """Share of the state that is experts, which `ep` splits by their number."""
    exchange: float = 0.05
    """Of a micro-batch's time, that rows take which go to experts elsewhere, were all of them elsewhere."""
    gather: float = 0.02
    """Of a micro-batch's time, that gathering parameters takes in a cell of several workers without a pipeline."""
    bubble: float = 1.0
    """Idle time of the pipeline's schedule, as a share of 1F1B's."""
    rounds: Mapping[Mesh, float] = field(default_factory=dict)
    """Seconds of a micro-batch by mesh, as far as they were measured: then the shares above are those of this run."""
    alone: float = PRIOR
    """Seconds a worker between two failures: Llama 3's (2024-07) until the run has seen some itself."""
    step: float = 10.0
    """Seconds of a step."""
    every: float = inf
    """Seconds between two states that outlive their cell: copies on other nodes, checkpoints."""
    behind: float = 0.0
    """Seconds of work since the newest of them."""
    buffer: float = 0.5e9
    """Bytes that a worker needs beside its shards while it takes another: its process, blocks on their way."""
    gradients: float = 1 / 3
    """Of a shard of the state, what its gradients come to."""


@dataclass(frozen=True)
class Load:
    """What a step is: samples, and those of one worker's part of a micro-batch."""

    samples: int
    micro_batch: int

    def micro_batches(self, mesh: Mesh) -> int:
        """Micro-batches that cells of a mesh cut it into; 0 if it cannot be."""
        count, rest = divmod(self.samples, mesh.workers * self.micro_batch)
        return 0 if rest else count


def busy(mesh: Mesh, cells: int, load: Load) -> float:
    """Workers that `cells` cells keep busy: fewer than they have where some have a micro-batch more than others. 0: no
    cells, or a step cannot be cut for them."""
    count = load.micro_batches(mesh)
    return count * mesh.workers / -(-count // cells) if cells and count else 0.0


def speed(mesh: Mesh, cells: int, load: Load, costs: Costs) -> float:
    """What `cells` cells do, in workers that would do the same without losing anything to sharing."""
    count = load.micro_batches(mesh)
    if not cells or not count:
        return 0.0
    most = -(-count // cells)
    filling = costs.bubble * (mesh.pp - 1) / mesh.pp
    return load.samples / load.micro_batch / (most * each(mesh, costs) + filling)


def each(mesh: Mesh, costs: Costs) -> float:
    """Time of a micro-batch: as it is assumed, or in the measure of those that were."""
    measured = costs.rounds.get(mesh)
    if measured is None:
        return assumed(mesh, costs)
    first, seconds = next(iter(costs.rounds.items()))
    return assumed(first, costs) * measured / seconds


def assumed(mesh: Mesh, costs: Costs) -> float:
    gathers = mesh.pp == 1 and mesh.workers > 1
    return 1.0 + costs.exchange * (1 - 1 / mesh.ep) + costs.gather * gathers


def step_of(speed: float, load: Load, costs: Costs) -> float:
    """Seconds of a step at this speed; 0 if no micro-batch was measured."""
    if not costs.rounds or not speed:
        return 0.0
    first, seconds = next(iter(costs.rounds.items()))
    return load.samples / load.micro_batch / speed * seconds / assumed(first, costs)


def lost(exposed: int, costs: Costs) -> float:
    """Seconds of work that deaths are expected to undo within the horizon, where `exposed` shards have no second holder
    on another node. Without copies and checkpoints only what comes after the last death stays."""
    deaths = costs.horizon * exposed / costs.alone
    if not deaths:
        return 0.0
    if costs.every < inf:
        return min(deaths * undone(costs), costs.horizon)
    some = -expm1(-deaths)
    return costs.behind * some + costs.horizon * (1 - some / deaths)


def undone(costs: Costs) -> float:
    """Seconds of work that such a death undoes: since the newest state that outlives the cell, which on average is half
    as old as it gets, unless the next one is overdue. Where there are none, what has been done by now."""
    return costs.behind if costs.behind > costs.every or costs.every == inf else costs.every / 2


def holds(mesh: Mesh, present: Mesh, costs: Costs, *, on_device: bool) -> float:
    """Bytes of its node's memory that a worker of a mesh needs while it is filled: its shard and gradients (unless they
    are on a device), the shard of the present mesh that it keeps meanwhile, and a buffer."""
    new = 0.0 if on_device else costs.state_bytes / mesh.workers * (1 + costs.gradients)
    return new + costs.state_bytes / present.workers + costs.buffer
