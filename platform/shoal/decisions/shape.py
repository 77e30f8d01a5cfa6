"""What a run is asked to be, as its decisions need to know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal import batching
from shoal.config import Job
from shoal.plan import NOWHERE, Mesh, Site
from shoal_core.workload import Workload

__all__ = ["Shape", "shape_of"]


@dataclass(frozen=True)
class Shape:
    """What a run is asked to be."""

    cells: int
    workers: int
    steps: int
    micro_batches: Callable[[int], int]
    """Micro-batches of a step, all cells together."""
    recall: bool = False
    """Snapshots are copied to other nodes."""
    axes: Mesh | None = None
    """Stages and expert groups of a cell; by default it is one group."""
    site: Callable[[str], Site] = lambda node: NOWHERE
    """Where a node stands."""
    samples: Callable[[int], tuple[int, int]] = lambda step: (step, step + 1)
    """First sample of a step, and the first after it."""
    patience: float = 20.0
    """Seconds; every timeout follows from it."""
    not_finite: int = 10
    """Steps in a row that may be no numbers."""
    roll_backs: int = 10
    """Bad steps that may be taken back."""
    replace_stragglers: bool = False
    """Whether who is slow for long is replaced, if a spare is there."""
    spares: int | None = None
    """Warm workers without a seat to be kept; None: one on every free slot."""

    @property
    def mesh(self) -> Mesh:
        return self.axes or Mesh(ep=self.workers)


def shape_of(job: Job, workload: Workload, mesh: Mesh, site: Callable[[str], Site]) -> Shape:
    """What a job asks for. `site`: where a node stands."""

    def micro_batches(step: int) -> int:
        first, last = workload.samples(step)
        return batching.count(first, last, job.workers_per_cell, workload.micro_batch)

    return Shape(
        job.cells,
        job.workers_per_cell,
        job.steps,
        micro_batches,
        job.snapshots.recalls,
        mesh,
        site,
        samples=workload.samples,
        patience=job.patience,
        not_finite=job.not_finite,
        roll_backs=job.snapshots.roll_backs,
        replace_stragglers=job.stragglers == "replace",
        spares=None if job.spares == "all" else job.spares,
    )
