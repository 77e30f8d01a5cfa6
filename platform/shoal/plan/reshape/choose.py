"""The choice of a shape: whether cells of another shape would do more with the workers that live, and are worth getting
to. A pure function; it says why in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf, log2

from shoal.plan.cluster import NOWHERE, Site
from shoal.plan.reshape.bounds import Bounds
from shoal.plan.reshape.costs import Costs, Load, busy, lost, speed, step_of
from shoal.plan.reshape.overlap import overlaps
from shoal.plan.reshape.place import Placed, Survivor, exposed, place
from shoal.plan.reshape.room import ANYWHERE, Room
from shoal.plan.reshape.seen import Seen
from shoal.plan.reshape.words import Candidate, in_words, shape_of
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
    """What trains if nothing is reshaped: `cells` cells of `mesh`, those included that spares heal; without any the
    state is had from elsewhere, and `mesh` will do too. `lost`: whether workers idle because of a loss, so that nobody
    need be waited for; `seen`: what the run knows of what things take."""

    mesh: Mesh
    cells: int
    lost: bool = True
    seen: Seen = field(default_factory=Seen)


@dataclass(frozen=True)
class Choice:
    """Another shape. `crews`: its workers by cell and rank; `gain`: its speed over the present one's, less 1;
    `seconds`, `bytes` (None: nobody knows): to get there; `idle`: living workers without a seat before and after;
    `why`: all this in words; `steps`: seconds that what is left of the pending step takes (half, on average) and the
    first one after, 0 if nobody knows."""

    mesh: Mesh
    crews: tuple[tuple[str, ...], ...]
    why: str
    gain: float
    seconds: float
    bytes: int | None
    idle: tuple[int, int]
    steps: float = 0.0


@dataclass(frozen=True)
class Stay:
    """No other shape, and why. `again`: seconds after which to ask once more, if nothing changes before."""

    why: str
    again: float | None = None


def choose(
    living: Mapping[str, Survivor],
    present: Present,
    bounds: Bounds,
    costs: Costs,
    load: Load,
    site: Callable[[str], Site] = lambda node: NOWHERE,
    room: Room = ANYWHERE,
) -> Choice | Stay:
    """The shape in which the living do most within `costs.horizon`, what it takes to get there and what deaths undo
    counted; or to stay.

    Args:
        living: by name: all that may be given a seat.
        load: of the pending step.
        room: that nodes have for what a worker holds.
    """
    gone = set(range(present.mesh.workers)) - {one.rank for one in living.values()}
    if gone and present.cells:
        return Stay(f"no living worker holds shard {min(gone)}: there is nothing to reshape from")
    hold = bounds.limits.hold_s
    settled = {name: one for name, one in living.items() if one.rank is not None or one.age >= hold}
    fresh = [one.age for one in living.values() if one.rank is None and one.age < hold]
    again = hold - max(fresh) if fresh else None
    if fresh and not present.lost and not overdue(settled, hold):
        return Stay(
            f"{len(fresh)} workers have come within {hold:g} s: others may follow, or they may go", hold - min(fresh)
        )
    alone = exposed((one.rank, one.node) for one in living.values() if one.rank is not None)
    held = worth(present.mesh, present.cells, load, costs, alone)
    allowed = list(candidates(bounds.meshes, len(settled), held, bounds, costs, load))
    tight = room.tight(present.mesh, {one.mesh for one in allowed}, living, costs)
    found = [one for one in allowed if one.mesh not in tight]
    refused = [*candidates(tuple(bounds.refused), len(settled), held, bounds, costs, load)]
    refused += [one for one in allowed if one.mesh in tight]
    short = shorter({**bounds.refused, **tight}, refused, held, found)
    best = first_of(found, settled, held, present.lost, costs, site)
    used = f"{held.workers} of {len(living)} workers train"
    if best is None:
        return Stay(f"{used}, and no other shape that is allowed does more{short}", again)
    candidate, placed = best
    seconds = seconds_to(placed, held, costs)
    moved = round(placed.moved * costs.state_bytes) if costs.state_bytes else None
    why = in_words(candidate, held, len(living), seconds, moved, costs)
    if not pays(candidate, held, seconds, costs, costs.worth):
        return Stay(f"{used}; {why}: not worth it within {costs.horizon:g} s{short}", again)
    idle = len(living) - held.workers, len(living) - candidate.workers
    gain = candidate.speed / held.speed - 1 if held.speed else inf
    steps = step_of(held.speed, load, costs) / 2 + step_of(candidate.speed, load, costs)
    return Choice(candidate.mesh, placed.crews, why + short, gain, seconds, moved, idle, steps)


def overdue(settled: Mapping[str, Survivor], hold: float) -> bool:
    """Whether somebody has waited for so long that the run grows without those who still come."""
    return any(one.rank is None and PATIENCE * hold <= one.age < inf for one in settled.values())


# ---- what there is to choose from


def worth(mesh: Mesh, cells: int, load: Load, costs: Costs, exposed: int | None = None) -> Candidate:
    """`exposed`: if it is known; else of one cell all shards are, of several none."""
    alone = mesh.workers * (cells == 1) if exposed is None else exposed
    return Candidate(mesh, cells, busy(mesh, cells, load), speed(mesh, cells, load, costs), alone)


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
        other = mesh != present.mesh or not present.cells
        if other and cells >= limits.cells[0] and cells * mesh.workers >= limits.min_workers:
            yield worth(mesh, cells, load, costs)


def shorter(why: Mapping[Mesh, str], refused: list[Candidate], present: Candidate, found: list[Candidate]) -> str:
    """What the best of the refused shapes would have been, if it had been better than all: the end of a sentence."""
    best = max(refused, key=lambda one: one.speed, default=None)
    others = max([present.speed, *(one.speed for one in found)])
    if best is None or best.speed <= others * (1 + NEAR):
        return ""
    return f" ({shape_of(best, present)} would, but {why[best.mesh]})"


def first_of(
    found: list[Candidate],
    settled: Mapping[str, Survivor],
    present: Candidate,
    lost: bool,
    costs: Costs,
    site: Callable[[str], Site],
) -> tuple[Candidate, Placed] | None:
    """Of the shapes that are as good as the best, those most like the present one are placed: the one that does most
    within the horizon. None if none does more than the present one by keeping more workers busy, or by giving back the
    second copy that a loss has taken (`lost`)."""

    def may_do(one: Candidate) -> bool:
        return one.busy > present.busy * (1 + costs.worth) or (lost and one.exposed < present.exposed)

    better = [one for one in found if may_do(one) and pays(one, present, 0.0, costs, 0.0)]
    most = max((done(one, 0.0, costs) for one in better), default=0.0)
    near = [one for one in better if done(one, 0.0, costs) >= (1 - NEAR) * most]
    near.sort(key=lambda one: (unlike(one.mesh, present.mesh), -one.speed))
    seats, tried = 0, list[tuple[Candidate, Placed]]()
    for one in near:
        if tried and seats + one.workers > SEATS:
            break
        seats += one.workers
        shared = overlaps(present.mesh, one.mesh, costs.experts if one.mesh.ep * present.mesh.ep > 1 else 0.0)
        placed = place(settled, one.mesh, one.cells, shared, site)
        crews = ((rank, settled[worker].node) for crew in placed.crews for rank, worker in enumerate(crew))
        tried.append((replace(one, exposed=exposed(crews)), placed))
    return max(tried, key=lambda pair: done(pair[0], seconds_to(pair[1], present, costs), costs), default=None)


def unlike(mesh: Mesh, present: Mesh) -> tuple[int, float]:
    """How far a mesh is from the present one: axes that change beside FSDP, then the cells' size."""
    axes = (mesh.pp != present.pp) + (mesh.ep != present.ep)
    return axes, abs(log2(mesh.workers / present.workers))


# ---- what it is worth


def done(one: Candidate, seconds: float, costs: Costs) -> float:
    """What is done within the horizon, and is not undone by a death; `seconds`: until it begins."""
    return one.speed * left(one, seconds, costs)


def left(one: Candidate, seconds: float, costs: Costs) -> float:
    """Seconds of the horizon whose work stays."""
    return costs.horizon - seconds - lost(one.exposed, costs)


def seconds_to(placed: Placed, present: Candidate, costs: Costs) -> float:
    """Until the new shape trains: whoever receives most, or whoever gives, if those who hold the state share it out
    equally, is ready last."""
    givers = max(1, present.workers)
    return costs.leave + max(placed.most, placed.moved / givers) * costs.state_bytes / costs.bandwidth


def pays(one: Candidate, present: Candidate, seconds: float, costs: Costs, worth: float) -> bool:
    """Whether more is done within the horizon, by the share that it must be `worth`; and more by counting workers too:
    what is assumed of their speed brings no change about."""
    then, now, least = left(one, seconds, costs), left(present, 0.0, costs), worth * costs.horizon
    faster = one.speed * then > present.speed * (now + least)
    return faster and one.busy * then > present.busy * (now + least)
