"""What each rank holds of a state, and which of them writes what: every element once, replicated ones dealt out over
the ranks of a cell, and what a rank writes over the cells that hold the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal_core.ckpt.boxes import Box, tile
from shoal_core.ckpt.dtypes import itemsize

__all__ = ["Piece", "block_bytes", "check", "deal", "spread"]

SMALLEST, LARGEST = 1 << 16, 1 << 26
"""Bytes of a block: who reads a part of one reads all of it, so small ones waste little, and large ones keep the index
of a large state short."""
BLOCKS = 1 << 13
"""A state is cut into about so many blocks, within these bounds."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor of `shape` that a rank holds."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    box: Box

    @property
    def itemsize(self) -> int:
        return itemsize(self.dtype)

    @property
    def bytes(self) -> int:
        return math.prod(self.box.lengths) * self.itemsize

    def told(self) -> list[Any]:
        """For other ranks, in JSON."""
        return [self.name, self.dtype, self.shape, *self.box]

    @classmethod
    def heard(cls, said: Sequence[Any]) -> Piece:
        name, dtype, shape, offsets, lengths = said
        return cls(name, dtype, tuple(shape), Box(tuple(offsets), tuple(lengths)))


def deal(held: Sequence[Sequence[Piece]], going: Mapping[int, float] | None = None) -> list[list[Piece]]:
    """Which of the pieces that each rank holds it writes: what several hold, the largest first, whoever has least.
    going: ranks that may not have the time, which write what nobody else holds; each as much as it can in its time,
    beside the others of them.

    Raises:
        ValueError: what the ranks hold is no state: a tensor has two shapes or dtypes, or is not tiled by the pieces.
    """
    going = going or {}
    holders: dict[Piece, list[int]] = {}
    for rank, pieces in enumerate(held):
        for piece in pieces:
            holders.setdefault(piece, []).append(rank)
    check(list(holders))
    writes: list[list[Piece]] = [[] for _ in held]
    sizes = [0] * len(held)
    shared = sorted(holders, key=lambda piece: (len(holders[piece]) > 1, -piece.bytes, piece.name, piece.box))
    for piece in shared:
        staying = [rank for rank in holders[piece] if rank not in going]
        rank = min(staying or holders[piece], key=lambda one: (busy(sizes[one], going.get(one, 1.0)), one))
        writes[rank].append(piece)
        sizes[rank] += piece.bytes
    return writes


def busy(size: int, can: float) -> float:
    return size / can if can else math.inf


def spread(pieces: Sequence[Piece], count: int) -> list[list[Piece]]:
    """Which parts of `pieces`, those that one rank of a cell writes, each of `count` such cells writes: laid one after
    the other they are cut into shares of as many bytes, but between two rows, and nothing smaller than a block is cut
    off. So each share is even to within half a block or half a row, whichever is longer."""
    shares: list[list[Piece]] = [[] for _ in range(count)]
    total = sum(piece.bytes for piece in pieces)
    ends = [total * (cell + 1) // count for cell in range(count)]
    cell = before = 0
    for piece in sorted(pieces, key=lambda one: (one.name, one.box)):
        done = 0
        while piece.bytes and cell < count - 1 and ends[cell] <= before + piece.bytes:
            end = max(done, nearest_cut(piece, ends[cell] - before))
            shares[cell] += part(piece, done, end)
            done, cell = end, cell + 1
        shares[cell] += part(piece, done, rows_of(piece))
        before += piece.bytes
    return shares


def cut_along(piece: Piece) -> int:
    """The dimension along which a piece is cut: parts of it are runs of its bytes then."""
    return next((at for at, length in enumerate(piece.box.lengths) if length != 1), 0)


def rows_of(piece: Piece) -> int:
    """How many rows a piece can be cut into."""
    return piece.box.lengths[cut_along(piece)] if piece.box.lengths and piece.bytes else 1


def nearest_cut(piece: Piece, place: int) -> int:
    """The row before which to cut a piece, nearest to the byte `place`; its first or its last is not cut."""
    count = rows_of(piece)
    row = piece.bytes // count
    least = -(-SMALLEST // row)
    inside = min(max(least, round(place / row)), count - least)
    found = [0, count, inside] if least <= inside else [0, count]
    return min(found, key=lambda cut: abs(cut * row - place))


def part(piece: Piece, first: int, end: int) -> list[Piece]:
    """Rows of a piece, as a piece; none of none."""
    if end - first == rows_of(piece):
        return [piece]
    if end == first:
        return []
    at, (offsets, lengths) = cut_along(piece), piece.box
    cut = Box(
        (*offsets[:at], offsets[at] + first, *offsets[at + 1 :]), (*lengths[:at], end - first, *lengths[at + 1 :])
    )
    return [Piece(piece.name, piece.dtype, piece.shape, cut)]


def check(pieces: Sequence[Piece]) -> None:
    """Whether different pieces make up a state.

    Raises:
        ValueError: they do not.
    """
    tensors: dict[str, list[Piece]] = {}
    for piece in pieces:
        tensors.setdefault(piece.name, []).append(piece)
    for name, parts in tensors.items():
        kinds = {(piece.dtype, piece.shape) for piece in parts}
        if len(kinds) > 1:
            raise ValueError(f"{name} is of several kinds: {', '.join(f'{d} {list(s)}' for d, s in sorted(kinds))}")
        if not tile(parts[0].shape, [piece.box for piece in parts]):
            raise ValueError(f"the ranks do not hold every element of {name} once")


def block_bytes(held: Mapping[Piece, Any] | Sequence[Piece]) -> int:
    """How large the blocks of a state of these pieces are."""
    total = sum(piece.bytes for piece in held)
    return min(max(SMALLEST, total // BLOCKS), LARGEST)
