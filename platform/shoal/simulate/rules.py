"""Worker hours that train, by what is done about living workers of a broken cell: three rules under the same failures.

A rule is told who lives and answers who trains. Nobody's messages are simulated here (`simulation` does that): of a
recovery only its seconds count, which are those of `Times`, and during which nobody trains.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Protocol

from shoal.decisions.shape import Choose
from shoal.plan import Mesh
from shoal.plan.reshape import Bounds, Choice, Costs, Limits, Load, Present, Stay, Survivor, busy, choose
from shoal.plan.reshape.bounds import meshes_within
from shoal.simulate.failures import draw, failures_a_second
from shoal.simulate.settings import Settings

__all__ = ["Hours", "Rule", "chooser", "compared", "rules_of"]

HOLD = 30.0
"""Seconds for which who comes must have stayed."""
STATE = 1e12
"""Bytes of a replica's state: what moves is reckoned by the time that a whole cell's copy takes."""


@dataclass
class Hours:
    """Worker seconds. `trained`: of workers that had micro-batches; `idle`: of living ones that had not; `changing`: of
    living ones while cells were formed; `dead`: of those that were not there."""

    trained: float = 0.0
    idle: float = 0.0
    changing: float = 0.0
    dead: float = 0.0
    changes: int = 0
    line: list[tuple[float, float]] = field(default_factory=list)
    """(time, workers that train from then on, but for the seconds of a change)."""

    def pass_by(self, seconds: float, workers: int, living: int, training: float) -> None:
        self.trained += seconds * training
        self.idle += seconds * (living - training)
        self.dead += seconds * (workers - living)

    @property
    def share(self) -> float:
        return self.trained / (self.trained + self.idle + self.changing + self.dead)


@dataclass(frozen=True)
class Answer:
    """Workers that are kept busy from now on; seconds for which nobody is before; seconds after which to ask again."""

    busy: float
    seconds: float = 0.0
    again: float | None = None


class Rule(Protocol):
    def change(self, living: dict[str, float], now: float) -> Answer:
        """Workers (`node.slot`, since when they are there) have gone or come; or it was asked for."""


class Groups:
    """torchft's rule: a replica group is whole with all of its own workers, or takes no part."""

    def __init__(self, settings: Settings, load: Load) -> None:
        self.settings, self.load, self.mesh = settings, load, Mesh(fsdp=settings.workers)
        names = [f"n{i // settings.slots}.{i % settings.slots}" for i in range(settings.nodes * settings.slots)]
        self.groups = [frozenset(names[i : i + settings.workers]) for i in range(0, len(names), settings.workers)]
        self.whole = len(self.groups)

    def change(self, living: dict[str, float], now: float) -> Answer:
        times, before = self.settings.times, self.whole
        self.whole = sum(group <= living.keys() for group in self.groups)
        seconds = 0.0 if self.whole == before else times.regroup + times.copy * (self.whole > before)
        return Answer(busy(self.mesh, self.whole, self.load), seconds)


class Cells:
    """Shoal's: a broken cell is healed by whoever idles; and takes another of `meshes` with the others where that is
    worth it. With one mesh cells are dropped."""

    def __init__(self, settings: Settings, load: Load, meshes: tuple[Mesh, ...]) -> None:
        self.settings, self.load, self.mesh = settings, load, Mesh(fsdp=settings.workers)
        self.seats = settings.cells * settings.workers
        names = iter(f"n{i // settings.slots}.{i % settings.slots}" for i in range(self.seats))
        self.crews = [[next(names) for _ in range(settings.workers)] for _ in range(settings.cells)]
        self.costs = costs_of(settings)
        self.bounds = Bounds(meshes, Limits(hold_s=HOLD))

    def change(self, living: dict[str, float], now: float) -> Answer:
        before, times = len(self.crews), self.settings.times
        broken = [crew for crew in self.crews if any(worker not in living for worker in crew)]
        self.crews = [crew for crew in self.crews if crew not in broken]
        lost, healed = bool(broken), self.heal(living, broken)
        seconds = times.regroup * (lost or healed > 0) + times.copy * (healed > 0)
        found = self.another(living, now, lost=lost or len(self.crews) < before)
        if isinstance(found, Choice):
            self.mesh, self.crews = found.mesh, [list(crew) for crew in found.crews]
            seconds = found.seconds
        again = found.again if isinstance(found, Stay) else None
        return Answer(busy(self.mesh, len(self.crews), self.load), seconds, again)

    def heal(self, living: dict[str, float], broken: list[list[str]]) -> int:
        """Fill broken cells, and those that the run has too few of, from whoever idles; returns how many."""
        taken = {worker for crew in self.crews for worker in crew}
        idle = [worker for worker in living if worker not in taken]
        healed, size = 0, self.mesh.workers
        while len(self.crews) < self.seats // size and len(idle) >= size:
            kept = [worker for worker in (broken.pop(0) if broken else []) if worker in idle]
            crew = [*kept, *(worker for worker in idle if worker not in kept)][:size]
            self.crews.append(crew)
            idle = [worker for worker in idle if worker not in crew]
            healed += 1
        return healed

    def another(self, living: dict[str, float], now: float, *, lost: bool) -> Choice | Stay:
        rank = {worker: place for crew in self.crews for place, worker in enumerate(crew)}
        survivors = {
            worker: Survivor(worker.partition(".")[0], rank.get(worker), now - since)
            for worker, since in living.items()
        }
        return choose(survivors, Present(self.mesh, len(self.crews), lost), self.bounds, self.costs, self.load)


def costs_of(settings: Settings) -> Costs:
    """By the times and failures of a simulation: a shape is counted on until the next failure, on average."""
    times, workers = settings.times, settings.nodes * settings.slots
    often = failures_a_second(workers * settings.each, settings.rate)
    bandwidth = STATE / settings.workers / max(times.copy, 1e-9)
    horizon = 1 / often if often else settings.days * 86400
    alone, every = workers / often if often else inf, settings.checkpoint * times.step
    leave, step = times.regroup + times.form, times.step
    return Costs(STATE, bandwidth, leave=leave, horizon=horizon, step=step, alone=alone, every=every)


def meshes_of(settings: Settings) -> tuple[Mesh, ...]:
    """Cells of half to twice the workers of those that a run begins with, as far as a step can be cut for them."""
    size, home = settings.workers, Mesh(fsdp=settings.workers)
    samples = settings.cells * size * settings.micro_batches
    others = meshes_within(home, Limits(ep=[1], pp=[1]), samples)
    return (home, *(mesh for mesh in others if mesh != home and size / 2 <= mesh.workers <= 2 * size))


def chooser(settings: Settings) -> Choose:
    """The choice of a simulated run that is elastic."""
    load = Load(settings.cells * settings.workers * settings.micro_batches, 1)
    bounds, costs = Bounds(meshes_of(settings), Limits(hold_s=HOLD)), costs_of(settings)
    return lambda living, present, step: choose(living, present, bounds, costs, load)


def rules_of(settings: Settings) -> dict[str, Rule]:
    """The rules."""
    load = Load(settings.cells * settings.workers * settings.micro_batches, 1)
    home = Mesh(fsdp=settings.workers)
    return {
        "reshape": Cells(settings, load, meshes_of(settings)),
        "drop cells": Cells(settings, load, (home,)),
        "torchft's rule": Groups(settings, load),
    }


@dataclass(order=True)
class Change:
    """At `time`, workers go (`since` is None) or come; their loss is noticed `noticed` seconds later."""

    time: float
    workers: tuple[str, ...]
    comes: bool = False
    noticed: float = 0.0


def changes_of(settings: Settings) -> Iterator[Change]:
    """What happens to the workers, whatever is done about it, in no order."""
    times, slots = settings.times, settings.slots
    seconds = settings.days * 86400
    for failure in draw(settings.nodes * slots, seconds, settings.rate, Random(settings.seed)):
        node, part = divmod(failure.place * settings.nodes, 1)
        cause = failure.cause
        node_of = tuple(f"n{int(node)}.{slot}" for slot in range(slots))
        workers = node_of if cause.takes == "node" else (node_of[int(part * slots)],)
        noticed = times.silent if cause.shows == "silent" else times.closed
        away = cause.repair if cause.takes == "node" else 0.0
        yield Change(failure.time, workers, noticed=noticed)
        yield Change(failure.time + away + times.start, workers, comes=True)


def compared(settings: Settings) -> dict[str, Hours]:
    """Worker hours by rule, without spares."""
    changes = sorted(changes_of(settings))
    return {name: told(settings, changes, rule) for name, rule in rules_of(settings).items()}


def told(settings: Settings, changes: list[Change], rule: Rule) -> Hours:
    """What becomes of a run under these changes by a rule."""
    total, end = settings.nodes * settings.slots, settings.days * 86400
    living = {f"n{i // settings.slots}.{i % settings.slots}": float("-inf") for i in range(total)}
    away = dict.fromkeys(living, 0)
    hours, now, training, resumes = Hours(), 0.0, float(total), 0.0
    queue = [*changes]
    while queue and queue[0].time < end:
        change = heapq.heappop(queue)
        hours_until(hours, now, change.time, resumes, total, len(living), training)
        now = change.time
        for worker in change.workers:
            away[worker] += -1 if change.comes else 1
            if away[worker]:
                living.pop(worker, None)
            else:
                living[worker] = now
        answer = rule.change(living, now)
        training = answer.busy
        if answer.seconds:
            hours.changes += 1
            resumes = max(resumes, now + change.noticed + answer.seconds)
        if answer.again is not None:
            heapq.heappush(queue, Change(now + answer.again, ()))
    hours_until(hours, now, end, resumes, total, len(living), training)
    return hours


def hours_until(
    hours: Hours, now: float, then: float, resumes: float, total: int, living: int, training: float
) -> None:
    """The time from `now` to `then`, in which nobody trains before `resumes`."""
    still = min(max(resumes - now, 0.0), then - now)
    hours.line.append((now, training))
    hours.changing += still * living
    hours.dead += still * (total - living)
    hours.pass_by(then - now - still, total, living, training)
