"""The map of a run's workers, as detailed as there is room for: every worker with its node, its mark alone, a mark for
each cell, or for several. Pure; what it says needs no colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from shoal.top.view import Seat, Stand

__all__ = ["MARKS", "Grid", "grid", "troubles"]

MARKS = {
    Stand.SPARE: "o",
    Stand.ENDED: ".",
    Stand.ALIVE: "+",
    Stand.HEALING: "~",
    Stand.SILENT: "?",
    Stand.GONE: "x",
}
WORST = tuple(Stand)
TEN = 10
"""Marks between two gaps, to count by."""
NAMED = 4
"""Nodes that are named of those in trouble."""


@dataclass(frozen=True)
class Grid:
    """The map's lines, and what a mark is in them."""

    lines: Sequence[str]
    unit: str


def grid(seats: Sequence[Seat], width: int, height: int) -> Grid:
    """The most detailed map that fits into `height` lines of `width` columns, of which the last may be cut. seats: by
    cell, stage and shard."""
    cells = {number: list(crew) for number, crew in groupby(seats, key=lambda seat: seat.cell)}
    if not cells or height < 1:
        return Grid([], "")
    for lines, unit in ((named(cells), "a worker and its node"), (marked(cells), "a worker")):
        if len(lines) <= height and max(map(len, lines)) <= width:
            return Grid(lines, unit)
    beside = columns(marked(cells), width)
    if len(beside) <= height and max(map(len, beside)) <= width:
        return Grid(beside, "a worker")
    return summed(cells, width, height)


def named(cells: dict[int, list[Seat]]) -> list[str]:
    """A line a cell, with every worker's node."""
    wide = max((len(seat.node) for crew in cells.values() for seat in crew), default=1) or 1
    return _by_cell(cells, lambda stage: "  ".join(f"{MARKS[seat.stand]} {seat.node:{wide}}" for seat in stage), " | ")


def marked(cells: dict[int, list[Seat]]) -> list[str]:
    """A line a cell, with a mark a worker."""
    return _by_cell(cells, lambda stage: "".join(MARKS[seat.stand] for seat in stage), " ")


def _by_cell(cells: dict[int, list[Seat]], tell: Callable[[list[Seat]], str], between: str) -> list[str]:
    digits = len(str(max(cells)))
    found = []
    for number, crew in cells.items():
        stages = [tell(list(stage)) for _, stage in groupby(crew, key=lambda seat: seat.stage)]
        found.append(f"cell {number:{digits}}  {between.join(stages)}".rstrip())
    return found


def columns(lines: list[str], width: int) -> list[str]:
    """Lines side by side, as many as there is width for, column after column."""
    wide = max(map(len, lines))
    count = max(1, (width + 3) // (wide + 3))
    rows = -(-len(lines) // count)
    return ["   ".join(f"{line:{wide}}" for line in lines[row::rows]).rstrip() for row in range(rows)]


def summed(cells: dict[int, list[Seat]], width: int, height: int) -> Grid:
    """A mark a cell, or for as many cells as must share one: that of the worst of their workers."""
    worst = [max((seat.stand for seat in crew), key=WORST.index) for crew in cells.values()]
    digits = len(str(max(cells)))
    room = width - digits - len("cell   ")
    a_row = (room + 1) // (TEN + 1) * TEN or max(1, room)
    each = max(1, -(-len(worst) // (a_row * height)))
    marks = [MARKS[max(worst[at : at + each], key=WORST.index)] for at in range(0, len(worst), each)]
    numbers = list(cells)
    lines = []
    for at in range(0, len(marks), a_row):
        tens = ["".join(marks[ten : min(ten + TEN, at + a_row)]) for ten in range(at, min(at + a_row, len(marks)), TEN)]
        lines.append(f"cell {numbers[at * each]:{digits}}  {' '.join(tens)}")
    return Grid(lines, "the worst of a cell" if each == 1 else f"the worst of {each} cells")


def troubles(seats: Sequence[Seat]) -> list[str]:
    """Where workers are not as they should be: a line for each way in which they are not."""
    found = []
    for stand in (Stand.GONE, Stand.SILENT, Stand.HEALING):
        nodes = Counter(seat.node or "nowhere" for seat in seats if seat.stand is stand)
        if nodes:
            named = [f"{node} ({count})" for node, count in nodes.most_common(NAMED)]
            more = [f"{len(nodes) - NAMED} more nodes"] if len(nodes) > NAMED else []
            found.append(f"{MARKS[stand]} {stand} on {', '.join([*named, *more])}")
    return found
