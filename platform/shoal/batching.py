"""Which samples a step consumes, and who takes them: pure functions of the step and the live cells.

A step's samples `[first, last)` are cut into micro-batches of `workers * size` samples; a cell takes a whole
micro-batch, its worker of rank r the r-th part of it. Whatever the live cells are, a step consumes the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from shoal_core.errors import UserError

__all__ = ["MOST", "cell_ids", "coming", "count", "ids", "rest", "share"]

MOST = 1_000_000
"""Samples of a step: each is listed by who takes it, in memory and on record."""


def count(first: int, last: int, workers: int, size: int) -> int:
    """Micro-batches in a step.

    Raises:
        UserError: the global batch is not a multiple of a cell's micro-batch, or absurd.
    """
    batch, one = last - first, workers * size
    if batch > MOST:
        raise UserError(f"a global batch of {batch:,} samples: a step has {MOST:,} at most", "choose a smaller one")
    if batch % one:
        raise UserError(
            f"a global batch of {batch} samples cannot be cut into micro-batches of {workers} workers x {size} samples",
            f"choose a global batch that is a multiple of {one}, or a smaller micro-batch",
        )
    return batch // one


def ids(first: int, micro_batch: int, rank: int, workers: int, size: int) -> range:
    """Positions in the global order that worker `rank` of a cell takes of micro-batch `micro_batch`."""
    start = first + (micro_batch * workers + rank) * size
    return range(start, start + size)


def cell_ids(first: int, micro_batch: int, workers: int, size: int) -> range:
    """Positions in the global order of the whole micro-batch, worker after worker."""
    one = workers * size
    return range(first + micro_batch * one, first + (micro_batch + 1) * one)


def share(micro_batches: int, cells: Sequence[int]) -> dict[int, list[int]]:
    """Micro-batches of a fresh step for each live cell, dealt in turn."""
    return {cell: list(range(place, micro_batches, len(cells))) for place, cell in enumerate(cells)}


def rest(micro_batches: int, cells: Sequence[int], done: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Micro-batches that are still to be done in a step whose cells changed on the way: what nobody alive has done
    goes to the cells that have least, so that finished work is kept."""
    finished = {m for cell in cells for m in done.get(cell, ())}
    left = [m for m in range(micro_batches) if m not in finished]
    loads = [len(done.get(cell, ())) for cell in cells]
    todo: dict[int, list[int]] = {cell: [] for cell in cells}
    level = min(loads, default=0)
    while left:  # a round gives one to each cell that has no more than the others
        low = [cell for cell, load in zip(cells, loads, strict=True) if load <= level][: len(left)]
        for cell, m in zip(low, left, strict=False):
            todo[cell].append(m)
        left = left[len(low) :]
        level += 1
    return todo


def coming(
    samples: Callable[[int], tuple[int, int]],
    steps: range,
    todo: Sequence[int],
    cells: Sequence[int],
    cell: int,
    workers: int,
    size: int,
) -> Iterator[list[range]]:
    """What `cell` will be given as long as the live cells are `cells`: its micro-batches of each of `steps`, as
    `cell_ids`.

    Args:
        samples: step -> the positions in the global order that it consumes.
        todo: micro-batches that are left of the first of the steps.
    """
    for step in steps:
        first, last = samples(step)
        mine = todo if step == steps.start else share(count(first, last, workers, size), cells)[cell]
        yield [cell_ids(first, m, workers, size) for m in mine]
