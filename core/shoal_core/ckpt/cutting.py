"""Boxes cut into others: where several overlap, what is left of one, and what of one lies in a piece in another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from shoal_core.ckpt.boxes import Box

__all__ = ["apart", "cut", "offset", "overlay", "remainder", "runs"]

T = TypeVar("T")


def less(box: Box, other: Box) -> Iterator[Box]:
    """What of `box` is not in `other`, which lies in it: boxes without a common element."""
    offsets, lengths = list(box.offsets), list(box.lengths)
    for axis, (first, length) in enumerate(zip(other.offsets, other.lengths, strict=True)):
        start, end = offsets[axis], offsets[axis] + lengths[axis]
        for begin, stop in ((start, first), (first + length, end)):
            if stop > begin:
                yield Box(
                    (*offsets[:axis], begin, *offsets[axis + 1 :]),
                    (*lengths[:axis], stop - begin, *lengths[axis + 1 :]),
                )
        offsets[axis], lengths[axis] = first, length


def overlay(boxes: Iterable[tuple[Box, T]]) -> list[tuple[Box, list[T]]]:
    """Boxes without a common element that make up all of `boxes`, each with whose it is: cut where they overlap."""
    same: dict[Box, list[T]] = {}
    for box, whose in boxes:
        same.setdefault(box, []).append(whose)
    if apart(list(same)):
        return list(same.items())
    found: list[tuple[Box, list[T]]] = []
    for box, owners in same.items():
        left, cells = [box], []
        for cell, others in found:
            common = cell.common(box)
            if common is None:
                cells.append((cell, others))
                continue
            cells += [(part, others) for part in less(cell, common)]
            cells.append((common, [*others, *owners]))
            left = [part for one in left for part in remainder(one, common)]
        found = [*cells, *((part, owners) for part in left)]
    return found


def apart(boxes: Sequence[Box]) -> bool:
    """Whether no two of `boxes` hold a common element."""
    open_ones: list[Box] = []
    for box in sorted(box for box in boxes if box.numel):
        if box.lengths:  # of scalars the second is the first again
            open_ones = [one for one in open_ones if one.offsets[0] + one.lengths[0] > box.offsets[0]]
        if any(one.common(box) for one in open_ones):
            return False
        open_ones.append(box)
    return True


def remainder(box: Box, other: Box) -> Iterator[Box]:
    """What of `box` is not in `other`, wherever that lies."""
    common = box.common(other)
    return iter([box]) if common is None else less(box, common)


def cut(box: Box, itemsize: int, limit: int) -> Iterator[Box]:
    """Cut `box` into parts of at most `limit` bytes (but for an element that is larger), each a piece of its rows."""
    axis = next((axis for axis, length in enumerate(box.lengths) if length > 1), None)
    if axis is None or box.numel * itemsize <= limit:
        yield box
        return
    count = box.lengths[axis]
    step = max(1, limit // (box.numel // count * itemsize))
    for first in range(0, count, step):
        offsets = (*box.offsets[:axis], box.offsets[axis] + first, *box.offsets[axis + 1 :])
        lengths = (*box.lengths[:axis], min(step, count - first), *box.lengths[axis + 1 :])
        yield from cut(Box(offsets, lengths), itemsize, limit)


def offset(box: Box, outer: Box) -> int | None:
    """How many elements of `outer`, in row-major order, come before those of `box`, if these lie there in a piece."""
    place, stride, partial = 0, 1, False
    places = zip(box.offsets, box.lengths, outer.offsets, outer.lengths, strict=True)
    for first, length, start, size in reversed(list(places)):
        if partial and length > 1:
            return None
        partial = partial or length != size
        place += (first - start) * stride
        stride *= size
    return place


def runs(box: Box, outer: Box) -> Iterator[tuple[Box, int]]:
    """The parts of `box` that lie in a piece each in `outer`, and how many elements come before them there."""
    axis = len(box.lengths)
    while axis and box.lengths[axis - 1] == outer.lengths[axis - 1]:
        axis -= 1
    lead = max(axis - 1, 0)  # these are walked; the next is cut, and all behind it are whole
    strides = [math.prod(outer.lengths[axis + 1 :]) for axis in range(len(outer.lengths))]
    rest = box.offsets[lead:], box.lengths[lead:]
    for walked in itertools.product(*map(range, box.lengths[:lead])):
        offsets = (*(first + step for first, step in zip(box.offsets, walked, strict=False)), *rest[0])
        before = (o - start for o, start in zip(offsets, outer.offsets, strict=True))
        yield Box(offsets, (*(1,) * lead, *rest[1])), sum(n * stride for n, stride in zip(before, strides, strict=True))
