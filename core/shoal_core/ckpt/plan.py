"""Which bytes of which files make up what is asked for: the parts of a checkpoint that a rank of any mesh reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.errors import Unfit
from shoal_core.ckpt.index import Block, Index

__all__ = ["Copy", "Part", "Read", "Want", "plan"]

AT_ONCE = 1 << 24
"""Bytes of blocks that lie side by side and are read in one go."""


@dataclass(frozen=True)
class Want:
    """What is asked for of a tensor, which should be of this kind: `boxes`, each for a destination of its own."""

    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Copy:
    """Of a block `box` goes to the destination of number `target` of its tensor, which holds the box `into`."""

    target: int
    into: Box
    box: Box


@dataclass(frozen=True)
class Part:
    """A block, which is read as a whole because it is hashed as a whole, and where it goes."""

    name: str
    block: Block
    copies: tuple[Copy, ...]


@dataclass(frozen=True)
class Read:
    """`parts` lie one after the other in `file`, from the byte `at` on."""

    file: str
    at: int
    bytes: int
    parts: tuple[Part, ...]


def plan(index: Index, wanted: Mapping[str, Want], where: str, at_once: int = AT_ONCE) -> list[Read]:
    """What to read so that every box that is wanted is filled; each block is read once. where: the checkpoint.

    Raises:
        Unfit: it holds no such tensor, or one of another shape or dtype.
    """
    parts = [part for name, want in wanted.items() for part in parts_of(index, name, want, where)]
    parts.sort(key=lambda part: (part.block.file, part.block.at))
    return list(merged(parts, at_once))


def parts_of(index: Index, name: str, want: Want, where: str) -> Iterator[Part]:
    """The blocks of a tensor that are wanted.

    Raises: as `plan`.
    """
    tensor = index.tensors.get(name)
    remedy = "resume with the workload it was saved by, or begin another run"
    if tensor is None:
        raise Unfit(f"{where}: does not hold this workload's state: there is no tensor {name}", remedy)
    if (tensor.shape, tensor.dtype) != (want.shape, want.dtype):
        found, asked = f"{list(tensor.shape)} {tensor.dtype}", f"{list(want.shape)} {want.dtype}"
        raise Unfit(f"{where}: does not hold this workload's state: {name} is {found} there, {asked} here", remedy)
    for block in tensor.blocks:
        if not block.bytes:
            continue
        common = [(number, into, block.box.common(into)) for number, into in enumerate(want.boxes)]
        if copies := tuple(Copy(number, into, box) for number, into, box in common if box is not None):
            yield Part(name, block, copies)


def merged(parts: Sequence[Part], at_once: int) -> Iterator[Read]:
    """Reads of `parts`, which are in the order of their places."""
    side_by_side: list[Part] = []
    for part in parts:
        if side_by_side:
            first, last = side_by_side[0].block, side_by_side[-1].block
            end = part.block.at + part.block.bytes
            follows = part.block.file == last.file and part.block.at == last.at + last.bytes
            if not follows or end - first.at > at_once:
                yield read_of(side_by_side)
                side_by_side = []
        side_by_side.append(part)
    if side_by_side:
        yield read_of(side_by_side)


def read_of(parts: Sequence[Part]) -> Read:
    first = parts[0].block
    return Read(first.file, first.at, sum(part.block.bytes for part in parts), tuple(parts))
