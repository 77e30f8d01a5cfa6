"""What a run is asked to be, as its decisions need to know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import inf

from shoal import batching
from shoal.config import Job
from shoal.plan import NOWHERE, Mesh, Site, reshape
from shoal.plan.reshape import (
    Bounds,
    Choice,
    Costs,
    Limits,
    Load,
    Present,
    Room,
    Stay,
    Survivor,
    bounds_of,
    check_limits,
    learnt,
)
from shoal.saving.interval import LONGEST
from shoal.saving.rhythm import MOST
from shoal.sections import WIDEST
from shoal_core.workload import ORIGIN, Workload

__all__ = ["Choose", "Shape", "bounds_for", "outlives", "shape_of"]

SOME = 4096
"""Steps by whose batches it is told which shapes a run may take: batches grow by few and large steps."""
STATE = 12.0
"""Bytes of state that a parameter has: its value and two moments."""
Choose = Callable[[Mapping[str, Survivor], Present, int], Choice | Stay]
"""Whether another shape would do more, with these workers at this step: see `plan.reshape.choose`."""


@dataclass(frozen=True)
class Shape:
    """What a run is asked to be; and the shape of its cells, which may change: `cells`, `workers` of each and their
    `axes`, told apart from others that it had by its `number`."""

    cells: int
    workers: int
    steps: int
    micro_batches: Callable[[int, int], int]
    """Micro-batches of a step in cells of so many workers, all cells together: (step, workers)."""
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
    failures: int | None = None
    """Times that it may go back to what was saved, unless nodes that were announced to go were all that died; None: any
    number."""
    preemptions: int | None = None
    """The same where they were."""
    replace_stragglers: bool = False
    """Whether who is slow for long is replaced, if a spare is there."""
    spares: int | None = None
    """Warm workers without a seat to be kept; None: one on every free slot."""
    number: int = 0
    choose: Choose | None = None
    """None: its cells stay as they are."""
    hold: float = 0.0
    """Seconds for which a run waits for workers before it takes a shape that has none of its cells."""
    seats: int = 0
    """That the run wants in any shape: those that it began with."""
    most: int = WIDEST
    """Cells of another shape that there may be."""

    @property
    def mesh(self) -> Mesh:
        return self.axes or Mesh(ep=self.workers)

    def reshaped(self, number: int, mesh: Mesh, cells: int) -> Shape:
        """The same run in at least so many cells of another mesh, in more if it wants and may."""
        wanted = max(cells, min(self.most, self.wanted // mesh.workers))
        return replace(self, cells=wanted, workers=mesh.workers, axes=mesh, number=number, seats=self.wanted)

    def told(self) -> dict[str, int] | None:
        """For the record; None for the shape that the run began with."""
        return {"number": self.number, "cells": self.cells, **asdict(self.mesh)} if self.number else None

    def again(self, told: Mapping[str, int] | None) -> Shape:
        """The shape that a record tells of, of a run that began with this one."""
        if told is None:
            return self
        axes = {field.name: told[field.name] for field in fields(Mesh)}
        mesh = Mesh(**axes)
        return replace(
            self, cells=told["cells"], workers=mesh.workers, axes=mesh, number=told["number"], seats=self.wanted
        )

    @property
    def wanted(self) -> int:
        """Seats that the run wants, whatever shape it has."""
        return self.seats or self.cells * self.workers


def shape_of(
    job: Job,
    workload: Workload,
    mesh: Mesh,
    site: Callable[[str], Site],
    parameters: float = 0.0,
    memory: Callable[[str], float] = lambda node: 0.0,
) -> Shape:
    """What a job asks for. `site`: where a node stands; `parameters`: of the model, if it is known; `memory`: bytes
    that a node has for the run's workers, 0 if nobody says."""

    def micro_batches(step: int, workers: int) -> int:
        first, last = workload.samples(step)
        return batching.count(first, last, workers, workload.micro_batch)

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
        failures=job.failures.most,
        preemptions=job.failures.preemptions,
        replace_stragglers=job.stragglers == "replace",
        spares=None if job.spares == "all" else job.spares,
        most=WIDEST if job.elastic is None else job.elastic.cells[1],
        choose=None if job.elastic is None else chooser(job, workload, mesh, site, parameters, memory),
        hold=0.0 if job.elastic is None else job.elastic.hold_s,
    )


def bounds_for(job: Job, workload: Workload, mesh: Mesh) -> Bounds:
    """The shapes that a job which says so may take, beside the one it begins with.

    Raises:
        UserError: it may not even have that.
    """
    assert job.elastic is not None
    limits = Limits(**job.elastic.model_dump())
    check_limits(limits, mesh, job.cells)
    first = int((job.workload.get(ORIGIN) or {}).get("steps", 0))  # before it batches were others
    some = range(first, job.steps, max(1, (job.steps - first) // SOME))
    batches = {last - first for first, last in map(workload.samples, (*some, job.steps - 1))}
    return bounds_of(workload, mesh, limits, sorted(batches), exact=job.reduce == "exact")


def chooser(
    job: Job,
    workload: Workload,
    mesh: Mesh,
    site: Callable[[str], Site],
    parameters: float,
    memory: Callable[[str], float],
) -> Choose:
    """Chooses among the shapes that a run may take."""
    bounds, assumed = bounds_for(job, workload, mesh), Costs(parameters * STATE)
    room = Room(memory, on_device=workload.runs_on == "cuda")

    def choose(living: Mapping[str, Survivor], present: Present, step: int) -> Choice | Stay:
        first, last = workload.samples(step)
        costs = learnt(assumed, present.seen, present.mesh, len(living))
        costs = replace(costs, every=outlives(job, costs.step))
        load = Load(last - first, workload.micro_batch)
        return reshape.choose(living, present, bounds, costs, load, site, room)

    return choose


def outlives(job: Job, step: float) -> float:
    """Seconds between two states that outlive their cell, at most, in steps of `step` seconds."""
    saves, copies = job.checkpoint.every, job.snapshots.every
    found = [LONGEST if saves == "auto" else saves * step if saves else inf]
    if job.snapshots.recalls:
        found.append((MOST if copies == "auto" else copies) * step)
    return min(found)
