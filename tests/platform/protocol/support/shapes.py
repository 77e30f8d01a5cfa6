"""Choices of a shape for the model, in place of `plan.reshape.choose`."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.decisions.shape import Choose, Shape
from shoal.plan import Mesh
from shoal.plan.reshape import Choice, Present, Stay, Survivor

__all__ = ["fits", "taking"]


def taking(shapes: Mapping[int, tuple[int, int]]) -> Choose:
    """So many living workers take a shape of (cells, workers of each), whenever not all of them train and every shard
    lives, or no cell does."""

    def choose(living: Mapping[str, Survivor], present: Present, step: int) -> Choice | Stay:
        names = sorted(living)
        held = {one.rank for one in living.values()}
        idle = len(names) - present.cells * present.mesh.workers
        lives = not present.cells or held.issuperset(range(present.mesh.workers))
        if len(names) not in shapes or not idle or not lives:
            return Stay("")
        cells, size = shapes[len(names)]
        crews = tuple(tuple(names[cell * size : (cell + 1) * size]) for cell in range(cells))
        return Choice(Mesh(ep=size), crews, "all of them train", 1.0, 0.0, 0, (idle, len(names) - cells * size))

    return choose


def fits(shape: Shape, living: int) -> bool:
    """Whether so many workers are enough for a cell of some shape."""
    if living >= shape.workers or shape.choose is None:
        return living >= shape.workers
    survivors = {str(number): Survivor(str(number), None) for number in range(living)}
    return isinstance(shape.choose(survivors, Present(shape.mesh, 0), 0), Choice)
