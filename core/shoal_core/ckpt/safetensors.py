"""The header of a safetensors file, made before the tensors' bytes are at hand: their sizes are known.

A file is 8 bytes (the length of the header, little-endian), the header in JSON, and the tensors one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from shoal_core.ckpt.boxes import whole
from shoal_core.ckpt.dtypes import SAFETENSORS
from shoal_core.ckpt.pieces import Piece

__all__ = ["ALIGNED", "header", "key_of", "parts"]

ALIGNED = 8
"""The first tensor begins at a multiple of so many bytes."""
METADATA = "__metadata__"
"""What a tensor cannot be called in a file."""


def key_of(piece: Piece) -> str:
    """What a piece is called in its file: the tensor's name if it is the whole of it, and else `NAME@OFFSETS`. The last
    `@` always begins the offsets: a name that has one is given them too."""
    if piece.box == whole(piece.shape) and "@" not in piece.name and piece.name != METADATA:
        return piece.name
    return f"{piece.name}@{','.join(map(str, piece.box.offsets))}"


def header(pieces: Sequence[Piece], about: Mapping[str, str]) -> bytes:
    """What the file of `pieces`, in this order, begins with. about: its `__metadata__`."""
    said: dict[str, object] = {METADATA: dict(about)}
    end = 0
    for piece in pieces:
        span = [end, end := end + piece.bytes]
        said[key_of(piece)] = {
            "dtype": SAFETENSORS[piece.dtype],
            "shape": list(piece.box.lengths),
            "data_offsets": span,
        }
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    return len(text).to_bytes(8, "little") + text


def parts(pieces: Sequence[Piece], limit: int) -> Iterator[list[Piece]]:
    """Share out one rank's `pieces` over files of at most `limit` bytes of tensors, or of one that is longer. In each
    those with the largest elements come first, so that all are aligned."""
    part: list[Piece] = []
    size = 0
    for piece in sorted(pieces, key=lambda one: (-one.itemsize, one.name, one.box)):
        if part and size + piece.bytes > limit:
            yield part
            part, size = [], 0
        part.append(piece)
        size += piece.bytes
    if part:
        yield part
