"""Parts of tensors as boxes: where they begin in the whole, and how long they are along each dimension."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

__all__ = ["MOST_CUT", "Box", "rows", "tile", "whole"]

MOST_CUT = 8
"""Dimensions along which a tensor is cut, at most: a box has twice as many corners with each."""


class Box(NamedTuple):
    """A part of a tensor, which has as many dimensions as the tensor; a scalar is one box of none."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.lengths)

    def within(self, shape: Sequence[int]) -> bool:
        """Whether it is a part of a tensor of this shape."""
        if not len(self.offsets) == len(self.lengths) == len(shape):
            return False
        parts = zip(self.offsets, self.lengths, shape, strict=True)
        return all(offset >= 0 and length >= 0 and offset + length <= size for offset, length, size in parts)

    def common(self, other: Box) -> Box | None:
        """What both hold; none if that is nothing."""
        starts = tuple(map(max, self.offsets, other.offsets))
        lengths = tuple(
            min(mine + length, theirs + other_length) - start
            for mine, length, theirs, other_length, start in zip(
                self.offsets, self.lengths, other.offsets, other.lengths, starts, strict=True
            )
        )
        return Box(starts, lengths) if all(length > 0 for length in lengths) else None

    def inside(self, outer: Box) -> tuple[slice, ...]:
        """Its place in a tensor that holds `outer`."""
        parts = zip(self.offsets, outer.offsets, self.lengths, strict=True)
        return tuple(slice(mine - theirs, mine - theirs + length) for mine, theirs, length in parts)


def whole(shape: Sequence[int]) -> Box:
    """A tensor of this shape as one box."""
    return Box((0,) * len(shape), tuple(shape))


def rows(box: Box, itemsize: int, limit: int) -> Iterator[tuple[Box, int]]:
    """Cut `box` along its first dimension into boxes of at most `limit` bytes, or of a row if that is longer. Yields
    each with where its bytes begin in those of `box`, in row-major order."""
    if not box.lengths or not box.numel:
        yield box, 0
        return
    row = box.numel // box.lengths[0] * itemsize
    step = max(1, limit // row)
    for first in range(0, box.lengths[0], step):
        count = min(step, box.lengths[0] - first)
        yield Box((box.offsets[0] + first, *box.offsets[1:]), (count, *box.lengths[1:])), first * row


def tile(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Whether `boxes` hold every element of a tensor of this shape exactly once. Along more than `MOST_CUT` dimensions
    nobody cuts a tensor, and no such boxes are accepted.

    Boxes are summed up by their corners, with the sign that each has in the sum over a part of a table: the corners
    that are left are those of the whole if and only if the boxes tile it. That takes as long as there are boxes.
    """
    if not all(box.within(shape) for box in boxes):
        return False
    filled = [box for box in boxes if 0 not in box.lengths]
    cut = [
        at for at, size in enumerate(shape) if any(offsets[at] or lengths[at] != size for offsets, lengths in filled)
    ]
    if len(cut) > MOST_CUT:
        return False
    corners = [(ends, (-1) ** sum(ends)) for ends in product((0, 1), repeat=len(cut))]
    left = Counter[tuple[int, ...]]()
    for times, some in ((1, filled), (-1, [whole(shape)] if 0 not in shape else [])):
        for offsets, lengths in some:
            for ends, sign in corners:
                left[tuple([offsets[at] + lengths[at] * end for at, end in zip(cut, ends, strict=True)])] += (
                    sign * times
                )
    return not any(left.values())
