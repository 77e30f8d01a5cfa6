"""Reading documents out of input files as Arrow columns; what cannot be read is quarantined, never dropped silently.

Only what the bytes themselves prove broken is quarantined, and it costs no more than it touches. Where a store does not
give bytes, or a file is no longer what it was when the work was planned, the work ends with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.errors import UserError
from shoal_data.sources.arrow_ipc import arrow_columns
from shoal_data.sources.columns import Columns, Quarantined, words
from shoal_data.sources.dataset_folder import MAPPED, mapped_stamp
from shoal_data.sources.fields import joined, plain
from shoal_data.sources.filesystem import reads_are_conditional, stamp_of
from shoal_data.sources.formats import is_packed
from shoal_data.sources.hub_dataset import STREAMED, streamed_columns
from shoal_data.sources.jsonl import jsonl_columns
from shoal_data.sources.mapped import mapped_columns
from shoal_data.sources.parquet import parquet_columns
from shoal_data.sources.parts import Piece
from shoal_data.sources.unpack import Damage, blocks, changed

__all__ = ["Documents", "Quarantined", "check_unchanged", "in_runs", "read_piece"]

UNKNOWN_LANGUAGE = "und"
_LARGEST = 2 << 30  # bytes of a compressed text file, unpacked: a few KB may hold as many zeros as they like
_ROWS_AT_ONCE = 1024  # rows that are decoded one by one if there is a bad one among them
_RUN = 100  # neighbouring rows of one cause from which on one entry names them all


@dataclass(frozen=True)
class Documents:
    """Documents of one file, in its order.

    Attributes:
        text: LargeString, no nulls, valid UTF-8, none empty.
        row: row number in the file, 0-based.
        lang: language tag of each.
    """

    path: str
    text: pa.LargeStringArray
    row: npt.NDArray[np.int64]
    lang: pa.StringArray


def read_piece(
    piece: Piece, column: str, quarantine: list[Quarantined], join: str | None = None
) -> Iterator[Documents]:
    """The documents of `piece`, in batches that fit in memory; what is broken goes to `quarantine` at the end.

    Args:
        column: the column or field with the text, within structs by its path (`a.b`).
        join: what to put between the strings of a list; None: lists are no text.

    Raises:
        StoreError: the store does not give the file.
        UserError: the file is not what it was when `piece` was planned, seen before the first or after the last byte.
    """
    check_unchanged(piece)
    lost: list[Quarantined] = []
    try:
        for columns in _READERS[piece.format](piece, column, join, lost):
            if (found := _documents_of(piece.path, columns, join, lost)) is not None:
                yield found
    except (UserError, MemoryError):  # neither proves anything about the bytes
        raise
    except Exception as error:  # whatever a parser says of broken bytes: the next piece goes on
        lost.append(Quarantined(piece.path, piece.row or None, f"unreadable {piece.format}: {words(error)}", None))
    check_unchanged(piece)
    quarantine.extend(in_runs(lost))


def check_unchanged(piece: Piece) -> None:
    if not piece.stamp or reads_are_conditional(piece.path):
        return
    if (mapped_stamp(piece.path) if piece.format == MAPPED else stamp_of(piece.path)) != piece.stamp:
        raise changed(piece.path)


def _documents_of(path: str, columns: Columns, join: str | None, lost: list[Quarantined]) -> Documents | None:
    """The documents of `columns`; what is none goes to `lost`, and so do all of them if Arrow finds them damaged."""
    bad: list[Quarantined] = []
    try:
        found = _clean(path, replace(columns, text=joined(columns.text, join)), bad)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        cause = f"unreadable {columns.origin}: {words(error)}"
        lost.append(Quarantined(path, int(columns.row[0]), cause, len(columns.row)))
        return None
    lost.extend(bad)
    return found


def _clean(path: str, columns: Columns, lost: list[Quarantined]) -> Documents | None:
    """The rows of `columns` that are valid, non-empty text, if there are any; those that are not go to `lost`.

    They are checked as a whole; only stretches of a column that fails are looked at row by row.
    """
    if len(columns.text) == 0:
        return None
    row, keep = columns.row, np.ones(len(columns.text), bool)
    if columns.text.null_count:
        keep = ~columns.text.is_null().to_numpy()
        lost.extend(Quarantined(path, int(number), columns.missing) for number in row[~keep])
    text = _valid_text(path, columns.text, row, keep, lost)
    empty = pc.equal(pc.binary_length(text), 0).fill_null(False).to_numpy(zero_copy_only=False)
    if empty.any():
        lost.extend(Quarantined(path, int(number), "empty document") for number in row[empty & keep])
        keep &= ~empty
    tags = _tags(columns.lang, len(text))
    if not keep.all():
        chosen = pa.array(keep)
        text, tags, row = text.filter(chosen), tags.filter(chosen), row[keep]
    return Documents(path, text, row, tags) if len(row) else None


def _valid_text(
    path: str,
    column: pa.ChunkedArray,
    row: npt.NDArray[np.int64],
    keep: npt.NDArray[np.bool_],
    lost: list[Quarantined],
) -> pa.LargeStringArray:
    """The column as text; a row that is not UTF-8 becomes a null, goes to `lost` and out of `keep`."""
    column = plain(column)
    try:
        text = _in_one(column.cast(pa.large_string()))
        text.validate(full=True)  # a string column read from a file may hold bytes that are not UTF-8
        return text
    except pa.ArrowInvalid:
        raw = _in_one(column.cast(pa.large_binary()))
    texts: list[pa.LargeStringArray] = []
    for first in range(0, len(raw), _ROWS_AT_ONCE):
        some = raw.slice(first, _ROWS_AT_ONCE)
        try:
            texts.append(some.cast(pa.large_string()))
        except pa.ArrowInvalid:
            decoded = [_decoded(value) for value in some.to_pylist()]
            for number, cause in enumerate(decoded, start=first):
                if isinstance(cause, UnicodeDecodeError):
                    lost.append(Quarantined(path, int(row[number]), f"invalid UTF-8 at byte {cause.start}"))
                    keep[number] = False
            texts.append(pa.array([one if isinstance(one, str) else None for one in decoded], pa.large_string()))
    return pa.concat_arrays(texts)


def _decoded(value: bytes | None) -> str | UnicodeDecodeError | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError as error:
        return error


def _tags(lang: pa.ChunkedArray | None, count: int) -> pa.StringArray:
    """Language tags of `count` documents: `und` wherever there is no tag that could be read."""
    none = pa.nulls(count, pa.string())
    if lang is None:
        return none.fill_null(UNKNOWN_LANGUAGE)
    try:
        raw = _in_one(plain(lang).cast(pa.binary()))  # numbers and what is nested do not cast
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return none.fill_null(UNKNOWN_LANGUAGE)
    try:
        tags = raw.cast(pa.string())
    except pa.ArrowInvalid:
        tags = pa.array([one if isinstance(one, str) else None for one in map(_decoded, raw.to_pylist())], pa.string())
    return tags.fill_null(UNKNOWN_LANGUAGE)


def _in_one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def in_runs(lost: Sequence[Quarantined]) -> list[Quarantined]:
    """What is lost of a file by row, with one entry for many neighbours of one cause: there may be millions of them.

    >>> in_runs([Quarantined("a", row, "null text") for row in range(7, 1007)])
    [Quarantined(file='a', row=7, cause='null text', rows=1000)]
    """
    found: list[Quarantined] = []
    run: list[Quarantined] = []

    def close() -> None:
        if len(run) >= _RUN:
            found.append(Quarantined(run[0].file, run[0].row, run[0].cause, len(run)))
        else:
            found.extend(run)
        run.clear()

    for entry in sorted(lost, key=lambda entry: -1 if entry.row is None else entry.row):
        if run and (entry.cause, entry.row, entry.rows) != (run[0].cause, (run[0].row or 0) + len(run), 1):
            close()
        run.append(entry)
        if entry.row is None or entry.rows != 1:
            close()
    close()
    return found


def _text_columns(piece: Piece, column: str, join: str | None, lost: list[Quarantined]) -> Iterator[Columns]:
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
    yield Columns(text, None, np.zeros(1, np.int64), "", "text")


_READERS: dict[str, Callable[[Piece, str, str | None, list[Quarantined]], Iterator[Columns]]] = {
    "arrow": arrow_columns,
    "parquet": parquet_columns,
    "jsonl": jsonl_columns,
    MAPPED: mapped_columns,
    "text": _text_columns,
    STREAMED: lambda piece, column, join, lost: streamed_columns(piece.path, column, join, lost),
}
