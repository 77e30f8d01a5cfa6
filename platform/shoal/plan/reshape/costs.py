"""What a shape is worth and what it costs to get there: a model that is said here in full, with its assumptions.

A step's time is counted in micro-batches of one worker (one worker that takes one through the whole model: 1). A cell
of `mesh.workers` takes its micro-batches of a step one after the other, so a step lasts as long as the cell that has
most of them; a pipeline fills and empties once a step; rows that go to other workers' experts, and parameters that are
gathered, take a share of every micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_core.mesh import Mesh

__all__ = ["Costs", "Load", "busy", "speed"]


@dataclass(frozen=True)
class Costs:
    """Seconds, bytes and shares. `exchange` and `gather` are assumptions: they part shapes that use as many workers,
    and are never by themselves a reason to reshape."""

    state_bytes: float
    """Of a whole replica's state: parameters, moments, averages."""
    bandwidth: float = 1e9
    """Bytes a second that a worker receives, or gives."""
    leave: float = 1.0
    """Seconds to end a generation, build the new cells' worlds and begin the next, before any byte."""
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
    each = 1.0 + costs.exchange * (1 - 1 / mesh.ep)
    if mesh.pp == 1 and mesh.workers > 1:
        each += costs.gather
    filling = costs.bubble * (mesh.pp - 1) / mesh.pp
    return load.samples / load.micro_batch / (most * each + filling)
