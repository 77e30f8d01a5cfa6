"""The choice of a shape: whether cells of another shape would do more with the workers that live, and are worth getting
to. A pure function; it says why in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, log2

from shoal.plan.cluster import NOWHERE, Site
from shoal.plan.reshape.bounds import Bounds
from shoal.plan.reshape.costs import Costs, Load, busy, speed
from shoal.plan.reshape.overlap import overlaps
from shoal.plan.reshape.place import Placed, Survivor, place
from shoal_core.mesh import Mesh

__all__ = ["Choice", "Present", "Stay", "choose"]

NEAR = 0.02
"""Shapes that do less than the best by this share at most are as good: the bytes, and how like the present one they
are, decide between them."""
SEATS = 4096
"""Seats that are placed, in all, to compare shapes that are as good; at least one shape is."""
PATIENCE = 4
"""Times `hold_s` after which workers that wait are used, though others are still coming."""


@dataclass(frozen=True)
class Present:
    """What trains if nothing is reshaped: `cells` cells of `mesh`, those included that spares heal. `lost`: whether
    workers idle because of a loss, so that nobody need be waited for."""

    mesh: Mesh
    cells: int
    lost: bool = True


@dataclass(frozen=True)
class Choice:
    """Another shape. `crews`: its workers by cell and rank; `gain`: its speed over the present one's, less 1;
    `seconds`, `bytes`: to get there; `idle`: living workers without a seat before and after; `why`: all this in
    words."""

    mesh: Mesh
    crews: tuple[tuple[str, ...], ...]
    why: str
    gain: float
    seconds: float
    bytes: int
    idle: tuple[int, int]


@dataclass(frozen=True)
class Stay:
    """No other shape, and why. `again`: seconds after which to ask once more, if nothing changes before."""

    why: str
    again: float | None = None


@dataclass(frozen=True)
class Candidate:
    """Cells of a mesh, the workers that they keep busy and what that comes to (see `costs`)."""

    mesh: Mesh
    cells: int
    busy: float
    speed: float

    @property
    def workers(self) -> int:
        return self.cells * self.mesh.workers


def choose(
    living: Mapping[str, Survivor],
    present: Present,
    bounds: Bounds,
    costs: Costs,
    load: Load,
    site: Callable[[str], Site] = lambda node: NOWHERE,
) -> Choice | Stay:
    """The shape in which the living do most within `costs.horizon`, what it takes to get there counted; or to stay.

    Args:
        living: by name: all that may be given a seat.
        load: of the pending step.
    """
    gone = set(range(present.mesh.workers)) - {one.rank for one in living.values()}
    if gone:
        return Stay(f"no living worker holds shard {min(gone)}: there is nothing to reshape from")
    hold = bounds.limits.hold_s
    settled = {name: one for name, one in living.items() if one.rank is not None or one.age >= hold}
    fresh = [one.age for one in living.values() if one.rank is None and one.age < hold]
    again = hold - max(fresh) if fresh else None
    if fresh and not present.lost and not overdue(settled, hold):
        return Stay(
            f"{len(fresh)} workers have come within {hold:g} s: others may follow, or they may go", hold - min(fresh)
        )
    held = worth(present.mesh, present.cells, load, costs)
    found = list(candidates(bounds.meshes, len(settled), held, bounds, costs, load))
    short = shorter(bounds, settled, held, found, costs, load)
    best = first_of(found, settled, held, costs, site)
    used = f"{held.workers} of {len(living)} workers train"
    if best is None:
        return Stay(f"{used}, and no other shape that is allowed does more{short}", again)
    candidate, placed = best
    seconds = seconds_to(placed, candidate, held, costs)
    moved = round(placed.moved * costs.state_bytes)
    why = in_words(candidate, held, len(living), seconds, moved)
    if not pays(candidate.speed, held.speed, seconds, costs):
        return Stay(f"{used}; {why}: not worth it within {costs.horizon:g} s{short}", again)
    idle = len(living) - held.workers, len(living) - candidate.workers
    gain = candidate.speed / held.speed - 1 if held.speed else inf
    return Choice(candidate.mesh, placed.crews, why + short, gain, seconds, moved, idle)


def overdue(settled: Mapping[str, Survivor], hold: float) -> bool:
    """Whether somebody has waited for so long that the run grows without those who still come."""
    return any(one.rank is None and PATIENCE * hold <= one.age < inf for one in settled.values())


# ---- what there is to choose from


def worth(mesh: Mesh, cells: int, load: Load, costs: Costs) -> Candidate:
    return Candidate(mesh, cells, busy(mesh, cells, load), speed(mesh, cells, load, costs))


def candidates(
    meshes: tuple[Mesh, ...],
    workers: int,
    present: Candidate,
    bounds: Bounds,
    costs: Costs,
    load: Load,
) -> Iterator[Candidate]:
    """Of each other mesh as many cells as the workers make and the step has micro-batches for, if the bounds allow
    them. Another number of the present cells is no other shape: the run heals, shrinks and grows by itself."""
    limits = bounds.limits
    for mesh in meshes:
        cells = min(limits.cells[1], workers // mesh.workers, load.micro_batches(mesh))
        if mesh != present.mesh and cells >= limits.cells[0] and cells * mesh.workers >= limits.min_workers:
            yield worth(mesh, cells, load, costs)


def shorter(
    bounds: Bounds,
    settled: Mapping[str, Survivor],
    present: Candidate,
    found: list[Candidate],
    costs: Costs,
    load: Load,
) -> str:
    """What the best of the refused shapes would have been, if it had been better than all: the end of a sentence."""
    refused = candidates(tuple(bounds.refused), len(settled), present, bounds, costs, load)
    best = max(refused, key=lambda one: one.speed, default=None)
    others = max([present.speed, *(one.speed for one in found)])
    if best is None or best.speed <= others * (1 + NEAR):
        return ""
    return f" ({best.cells} {cells_of(best, present)} would, but {bounds.refused[best.mesh]})"


def first_of(
    found: list[Candidate],
    settled: Mapping[str, Survivor],
    present: Candidate,
    costs: Costs,
    site: Callable[[str], Site],
) -> tuple[Candidate, Placed] | None:
    """Of the shapes that are as good as the best, those most like the present one are placed: the one that does most
    within the horizon. None if none keeps more workers busy than the present one."""
    better = [one for one in found if one.speed > present.speed and one.busy > present.busy * (1 + costs.worth)]
    most = max((one.speed for one in better), default=0.0)
    near = [one for one in better if one.speed >= (1 - NEAR) * most]
    near.sort(key=lambda one: (unlike(one.mesh, present.mesh), -one.speed))
    seats, tried = 0, list[tuple[Candidate, Placed]]()
    for one in near:
        if tried and seats + one.workers > SEATS:
            break
        seats += one.workers
        shared = overlaps(present.mesh, one.mesh, costs.experts if one.mesh.ep * present.mesh.ep > 1 else 0.0)
        tried.append((one, place(settled, one.mesh, one.cells, shared, site)))

    def work(candidate: Candidate, placed: Placed) -> float:
        return candidate.speed * (costs.horizon - seconds_to(placed, candidate, present, costs))

    return max(tried, key=lambda pair: work(*pair), default=None)


def unlike(mesh: Mesh, present: Mesh) -> tuple[int, float]:
    """How far a mesh is from the present one: axes that change beside FSDP, then the cells' size."""
    axes = (mesh.pp != present.pp) + (mesh.ep != present.ep)
    return axes, abs(log2(mesh.workers / present.workers))


# ---- what it is worth


def seconds_to(placed: Placed, candidate: Candidate, present: Candidate, costs: Costs) -> float:
    """Until the new shape trains: whoever receives most, or whoever gives, if those who hold the state share it out
    equally, is ready last."""
    givers = max(1, present.workers)
    return costs.leave + max(placed.most, placed.moved / givers) * costs.state_bytes / costs.bandwidth


def pays(speed: float, now: float, seconds: float, costs: Costs) -> bool:
    """Whether more is done within the horizon, by the share that it must be worth."""
    return speed * (costs.horizon - seconds) > now * costs.horizon * (1 + costs.worth)


def in_words(candidate: Candidate, present: Candidate, living: int, seconds: float, moved: int) -> str:
    """ "7 of 8 workers: 2 cells of 3 beat 1 of 4: +50%, 1.4 s, 3.2 GB"."""
    if present.speed:
        gain = f"beat {present.cells} of {present.mesh.workers}: {candidate.speed / present.speed - 1:+.0%}"
    else:
        gain = "where none trains"
    return (
        f"{candidate.workers} of {living} workers: {candidate.cells} {cells_of(candidate, present)} {gain}, "
        f"{seconds:.1f} s, {size(moved)}"
    )


def cells_of(candidate: Candidate, present: Candidate) -> str:
    """ "cells of 3", with the axes that change beside FSDP."""
    mesh, old = candidate.mesh, present.mesh
    axes = [f"{name} {new}" for name, new, was in (("pp", mesh.pp, old.pp), ("ep", mesh.ep, old.ep)) if new != was]
    word = "cell" if candidate.cells == 1 else "cells"
    return f"{word} of {mesh.workers}" + (f" ({', '.join(axes)})" if axes else "")


def size(bytes_: int) -> str:
    for unit, word in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if bytes_ >= unit:
            return f"{bytes_ / unit:.1f} {word}"
    return f"{bytes_ / 1e3:.1f} kB"
