"""What somebody has of a state in memory, as others are told of it: which parts of which tensors, and where they lie in
its tensors laid one after the other."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.dtypes import itemsize
from shoal_core.ckpt.index import Block, Tensor, number
from shoal_core.ckpt.pieces import Piece
from shoal_core.ckpt.plan import Want

if TYPE_CHECKING:
    import torch

__all__ = ["Table", "heard", "in_order", "merged", "octets", "table_of", "told"]

Table = Mapping[str, Tensor]
"""Names of tensors, and the parts that somebody has of them."""


def octets(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, which they share, wherever it lies."""
    import torch

    return tensor.detach().view(-1).view(torch.uint8)


def table_of(placed: Iterable[tuple[Piece, torch.Tensor]], tensors: Sequence[torch.Tensor]) -> Table:
    """What `tensors`, one after the other, hold. placed: the parts of a state that lie in their memory. What lies
    elsewhere is not in it, and cannot be had by its name."""
    ends = [0, *accumulate(tensor.nbytes for tensor in tensors)]
    places = sorted((tensor.data_ptr(), tensor.nbytes, at) for tensor, at in zip(tensors, ends, strict=False))
    starts = [start for start, *_ in places]
    found: dict[str, list[Block]] = {}
    kinds: dict[str, Piece] = {}
    for piece, local in placed:
        kinds[piece.name] = piece
        blocks = found.setdefault(piece.name, [])
        nearest = bisect_right(starts, local.data_ptr()) - 1
        if not local.nbytes or nearest < 0 or not local.is_contiguous():
            continue
        start, size, at = places[nearest]
        if local.data_ptr() + local.nbytes <= start + size:
            blocks.append(Block(piece.box, "", at + local.data_ptr() - start, local.nbytes, ""))
    return {name: Tensor(kinds[name].dtype, kinds[name].shape, tuple(blocks)) for name, blocks in found.items()}


def in_order(
    tensors: Sequence[torch.Tensor], file: str
) -> tuple[Table, dict[str, Want], dict[str, list[torch.Tensor]]]:
    """`tensors`, one after the other in `file`, by their numbers, as bytes: what there is, all of it as it is wanted,
    and where it goes to. Both sides have the same tensors in the same order."""
    table, wanted, targets, at = {}, {}, {}, 0
    for place, tensor in enumerate(tensors):
        name, shape = str(place), (tensor.nbytes,)
        block = Block(whole(shape), file, at, tensor.nbytes, "")
        table[name], wanted[name] = Tensor("uint8", shape, (block,)), Want("uint8", shape, (whole(shape),))
        targets[name] = [octets(tensor)]
        at += tensor.nbytes
    return table, wanted, targets


def merged(tables: Iterable[Table]) -> Table:
    """What one holder has by several tables; of a tensor that is of two kinds, what is of the first."""
    found: dict[str, Tensor] = {}
    for table in tables:
        for name, tensor in table.items():
            known = found.get(name, tensor)
            if (known.dtype, known.shape) == (tensor.dtype, tensor.shape):
                blocks = () if name not in found else known.blocks
                found[name] = Tensor(tensor.dtype, tensor.shape, (*blocks, *tensor.blocks))
    return found


def told(table: Table) -> bytes:
    """For others, in JSON."""
    said = {
        name: [tensor.dtype, tensor.shape, [[*block.box, block.at] for block in tensor.blocks]]
        for name, tensor in table.items()
    }
    return json.dumps(said, separators=(",", ":")).encode()


def heard(said: Any, file: str, size: int) -> Table:
    """What `told` made, once it is no JSON any more, of a holder's `file` of so many bytes.

    Raises:
        ValueError: it is none, or leads outside of the file.
    """
    try:
        return {name: parsed(one, file, size) for name, one in said.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no table of tensors ({type(error).__name__}: {error})") from error


def parsed(said: Sequence[Any], file: str, size: int) -> Tensor:
    """A tensor as a table tells of it. Raises: as `heard`, and what comes of another form."""
    dtype, shape, blocks = said
    each, sizes = itemsize(dtype), tuple(map(number, shape))
    found = []
    for offsets, lengths, at in blocks:
        box = Box(tuple(map(number, offsets)), tuple(map(number, lengths)))
        if not box.within(sizes) or number(at) + box.numel * each > size:
            raise ValueError("a part of a tensor lies outside of it, or of the file")
        found.append(Block(box, file, at, box.numel * each, ""))
    return Tensor(dtype, sizes, tuple(found))
