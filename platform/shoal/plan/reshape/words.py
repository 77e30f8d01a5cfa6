"""A choice of a shape in words."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from shoal.plan.reshape.costs import Costs, lost, undone
from shoal_core.mesh import Mesh
from shoal_core.units import size

__all__ = ["Candidate", "in_words", "shape_of", "span"]


@dataclass(frozen=True)
class Candidate:
    """Cells of a mesh, the workers that they keep busy and what that comes to (see `costs`). `exposed`: shards that
    have no second holder on another node."""

    mesh: Mesh
    cells: int
    busy: float
    speed: float
    exposed: int

    @property
    def workers(self) -> int:
        return self.cells * self.mesh.workers


def in_words(one: Candidate, present: Candidate, living: int, seconds: float, moved: int | None, costs: Costs) -> str:
    """ "7 of 8 workers: 2 cells of 3 beat 1 of 4: +50%, 1.4 s, 3.2 GB", and whether a second copy comes or goes.
    `moved`: bytes, None if nobody knows."""
    if present.speed:
        gain = f"beat {present.cells} of {present.mesh.workers}: {one.speed / present.speed - 1:+.0%}"
    else:
        gain = "where none trains"
    told = [gain, f"{seconds:.1f} s", *([] if moved is None else [size(moved)])]
    return f"{one.workers} of {living} workers: {shape_of(one, present)} {', '.join(told)}{safety(one, present, costs)}"


def safety(one: Candidate, present: Candidate, costs: Costs) -> str:
    """What a death costs where shards have no second holder, and how often one is reckoned with; nothing where the
    choice changes nothing about that, or it does not count."""
    more, risk = one.exposed - present.exposed, max(one.exposed, present.exposed)
    if not present.speed or not more or lost(risk, costs) < costs.worth * costs.horizon:
        return ""
    steps = round(undone(costs) / costs.step)
    cost = f"{steps} step{'' if steps == 1 else 's'}" + ("" if costs.every < inf else " and all that follow")
    death = f"a death (one in {span(costs.alone / risk)}) costs {cost}"
    if more > 0:
        return f"; {'some shards' if present.exposed else 'shards'} have no second copy on another node: {death}"
    but = f"all shards but {one.exposed} have" if one.exposed else "each shard has"
    return f"; {but} a second copy on another node: without it {death}"


def shape_of(one: Candidate, present: Candidate) -> str:
    """ "2 cells of 3", with the axes that change beside FSDP."""
    mesh, old = one.mesh, present.mesh
    axes = [f"{name} {new}" for name, new, was in (("pp", mesh.pp, old.pp), ("ep", mesh.ep, old.ep)) if new != was]
    word = "cell" if one.cells == 1 else "cells"
    return f"{one.cells} {word} of {mesh.workers}" + (f" ({', '.join(axes)})" if axes else "")


def span(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, word in ((365.25 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:,.1f} {word}"
    return f"{seconds:.1f} s"
