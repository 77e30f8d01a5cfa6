"""Parts of tensors as boxes: where they begin in the whole, and how long they are along each dimension."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Box", "apart", "rows", "tile", "whole"]


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
    """Whether `boxes` hold every element of a tensor of this shape exactly once."""
    if not all(box.within(shape) for box in boxes):
        return False
    return sum(box.numel for box in boxes) == math.prod(shape) and apart(boxes)


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
