"""What each rank holds of a state, and which of them writes what: every element once, replicated ones dealt out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal_core.ckpt.boxes import Box, tile
from shoal_core.ckpt.dtypes import itemsize

__all__ = ["Piece", "block_bytes", "deal"]

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
