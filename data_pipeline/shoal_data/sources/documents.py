"""Reading documents out of input files as Arrow columns; what cannot be read is quarantined, never dropped silently.

Only what the bytes themselves prove broken is quarantined, and it costs no more than it touches. Where a store does not
give bytes, or a file is no longer what it was when the work was planned, the work ends with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from shoal_core.errors import UserError
from shoal_data.sources.columns import Documents, Quarantined, clean, in_runs, words
from shoal_data.sources.filesystem import reads_are_conditional, stamp_of
from shoal_data.sources.formats import is_packed
from shoal_data.sources.jsonl import jsonl_documents
from shoal_data.sources.parquet import parquet_documents
from shoal_data.sources.parts import Piece
from shoal_data.sources.unpack import Damage, blocks, changed

__all__ = ["Documents", "Quarantined", "read_piece"]

_LARGEST = 2 << 30  # bytes of a compressed text file, unpacked: a few KB may hold as many zeros as they like


def read_piece(piece: Piece, column: str, quarantine: list[Quarantined]) -> Iterator[Documents]:
    """The documents of `piece`, in batches that fit in memory; what is broken goes to `quarantine` at the end.

    Raises:
        StoreError: the store does not give the file.
        UserError: the file is not what it was when `piece` was planned, seen before the first or after the last byte.
    """
    _check_unchanged(piece)
    lost: list[Quarantined] = []
    try:
        yield from _READERS[piece.format](piece, column, lost)
    except (UserError, MemoryError):  # neither proves anything about the bytes
        raise
    except Exception as error:  # whatever a parser says of broken bytes: the next piece goes on
        lost.append(Quarantined(piece.path, piece.row or None, f"unreadable {piece.format}: {words(error)}", None))
    _check_unchanged(piece)
    quarantine.extend(in_runs(lost))


def _check_unchanged(piece: Piece) -> None:
    if piece.stamp and not reads_are_conditional(piece.path) and stamp_of(piece.path) != piece.stamp:
        raise changed(piece.path)


def _text_document(piece: Piece, column: str, lost: list[Quarantined]) -> Iterator[Documents]:
    """The whole file, which is whole or lost."""
    held: list[bytes] = []
    size = 0
    try:
        for block in blocks(piece):
            held.append(block)
            size += len(block)
            if size > _LARGEST and is_packed(piece.path):
                raise Damage(f"it unpacks to more than {_LARGEST >> 30} GiB")
    except Damage as damage:
        if not damage.complete:
            lost.append(Quarantined(piece.path, 0, damage.cause))
            return
        lost.append(Quarantined(piece.path, None, damage.cause, None))
    text = pa.chunked_array([pa.array([b"".join(held)], pa.large_binary())])
    yield from clean(piece.path, text, None, np.zeros(1, np.int64), "", lost)


_READERS: dict[str, Callable[[Piece, str, list[Quarantined]], Iterator[Documents]]] = {
    "parquet": parquet_documents,
    "jsonl": jsonl_documents,
    "text": _text_document,
}
