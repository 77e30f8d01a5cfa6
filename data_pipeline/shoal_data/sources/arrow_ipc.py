"""Documents of Arrow IPC, as streams (what `datasets` writes) or files. A damaged batch costs its own rows.

Arrow has no checksums: a flipped byte in the text itself is not noticed. Lengths and offsets are checked before any
value is looked at.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from shoal_core.errors import UserError
from shoal_data.sources.arrow_messages import BrokenArrow, Message, messages
from shoal_data.sources.columns import Columns, Quarantined, words
from shoal_data.sources.fields import as_bytes, extract, locate, locate_tags, unfit
from shoal_data.sources.opening import open_file
from shoal_data.sources.parts import Piece

__all__ = ["arrow_columns", "batches", "columns_of"]


def arrow_columns(piece: Piece, column: str, join: str | None, lost: list[Quarantined]) -> Iterator[Columns]:
    """The record batches of `piece`; those that cannot be read go to `lost`.

    Where the whole file is of no use, the piece with its first batch says so.
    """
    for row, batch in batches(piece, lost):
        if cause := unfit(batch.schema, column, join):
            if not piece.row:
                lost.append(Quarantined(piece.path, None, cause, _rows(piece)))
            return
        origin = f"Arrow batch at row {row}"
        try:
            yield columns_of(batch, column, row, origin)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            lost.append(Quarantined(piece.path, row, f"unreadable {origin}: {words(error)}", len(batch)))


def batches(piece: Piece, lost: list[Quarantined]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The record batches of `piece`, each with the number of its first row; what cannot be read goes to `lost`.

    Their layout is not checked: `validate` them before you look at values.
    """
    row = piece.row
    with open_file(piece.path, piece.stamp) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            head = _head(file, size, piece.first)
            end = piece.last if piece.last < size else 0
            for message in messages(file, size, piece.first, end):
                if message.kind == "dictionary":
                    head += _bytes(file, message)
                if message.kind != "batch":
                    continue
                try:
                    batch = _batch(head + _bytes(file, message), message.rows)
                except (UserError, MemoryError):
                    raise
                except Exception as error:
                    cause = f"unreadable Arrow batch at row {row}: {words(error)}"
                    lost.append(Quarantined(piece.path, row, cause, message.rows))
                else:
                    yield row, batch
                row += message.rows
        except (BrokenArrow, pa.ArrowException, ValueError) as error:
            lost.append(Quarantined(piece.path, row or None, f"unreadable Arrow: {words(error)}", None))


def _rows(piece: Piece) -> int | None:
    """How many rows its file has; None if that cannot be told."""
    with open_file(piece.path, piece.stamp) as file:
        try:
            return sum(message.rows for message in messages(file, file.seek(0, os.SEEK_END)))
        except BrokenArrow:
            return None


def _head(file: BinaryIO, size: int, place: int) -> bytes:
    """The schema, and the dictionaries that whoever reads from byte `place` on must have read before.

    Raises:
        BrokenArrow, ArrowException: it does not begin as Arrow does.
    """
    walk = messages(file, size)
    head = _bytes(file, next(walk))
    if _has_dictionaries(pa.ipc.read_schema(pa.py_buffer(head))):
        for message in walk:
            if message.first >= place:
                break
            if message.kind == "dictionary":
                head += _bytes(file, message)
    return head


def _has_dictionaries(fields: pa.Schema | pa.DataType) -> bool:
    nested = isinstance(fields, pa.DataType)
    kinds = [fields.field(at).type for at in range(fields.num_fields)] if nested else fields.types
    return any(pa.types.is_dictionary(kind) or (pa.types.is_nested(kind) and _has_dictionaries(kind)) for kind in kinds)


def _bytes(file: BinaryIO, message: Message) -> bytes:
    file.seek(message.first)
    return file.read(message.last - message.first)


def _batch(content: bytes, rows: int) -> pa.RecordBatch:
    """The one batch of a stream that holds its schema, its dictionaries and the batch."""
    batch = pa.ipc.open_stream(pa.py_buffer(content)).read_next_batch()
    if batch.num_rows != rows:
        raise pa.ArrowInvalid(f"{batch.num_rows} rows, where its head says {rows}")
    return batch


def columns_of(batch: pa.RecordBatch, column: str, row: int, origin: str) -> Columns:
    """Text and tags of a batch, whose layout has been checked.

    Args:
        column: one that `unfit` finds fit.
        row: the number of its first row.

    Raises:
        ArrowInvalid: lengths and offsets contradict each other.
    """
    text = _checked(batch, locate(batch.schema, column)[0])
    tags = locate_tags(batch.schema, column)
    lang = None
    if tags is not None:
        with contextlib.suppress(pa.ArrowException):  # the text may be whole; the tags are not worth it
            lang = _checked(batch, tags)
    return Columns(text, lang, np.arange(row, row + len(batch)), "null text", origin)


def _checked(batch: pa.RecordBatch, path: list[int]) -> pa.ChunkedArray:
    """A column whose offsets and indices may be followed."""
    outer = batch.column(path[0])
    outer.validate()
    found = extract(pa.chunked_array([outer]), path[1:])
    chunks = [as_bytes(chunk) for chunk in found.chunks]
    for chunk in chunks:
        chunk.validate(full=True)
    return pa.chunked_array(chunks, chunks[0].type if chunks else found.type)
