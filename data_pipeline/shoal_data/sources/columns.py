"""Columns of text as they come out of a file: what is valid text goes on, what is not is named.

Columns are checked as a whole; only stretches of a column that fails are looked at row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Documents", "Quarantined", "clean", "in_runs", "words"]

UNKNOWN_LANGUAGE = "und"
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


@dataclass(frozen=True)
class Quarantined:
    """Something that was not taken in, and why.

    Attributes:
        row: the first row that is lost, 0-based; None: it is not known, or it is the whole file.
        rows: how many rows are lost; None: it is not known.
    """

    file: str
    row: int | None
    cause: str
    rows: int | None = 1


def clean(
    path: str,
    column: pa.ChunkedArray,
    lang: pa.ChunkedArray | None,
    row: npt.NDArray[np.int64],
    missing: str,
    lost: list[Quarantined],
) -> Iterator[Documents]:
    """The column as valid, non-empty text, without the rows that are not, which go to `lost`.

    Args:
        column: strings, bytes, or what Arrow casts to strings.
        lang: language tags; what is no text there is as good as no tag.
        row: number of each row in the file.
        missing: the cause where there is a null.
    """
    if len(column) == 0:
        return
    keep = np.ones(len(column), bool)
    if column.null_count:
        keep = ~column.is_null().to_numpy()
        lost.extend(Quarantined(path, int(number), missing) for number in row[~keep])
    text = _valid_text(path, column, row, keep, lost)
    empty = pc.equal(pc.binary_length(text), 0).fill_null(False).to_numpy(zero_copy_only=False)
    if empty.any():
        lost.extend(Quarantined(path, int(number), "empty document") for number in row[empty & keep])
        keep &= ~empty
    tags = _tags(lang, len(text))
    if not keep.all():
        chosen = pa.array(keep)
        text, tags, row = text.filter(chosen), tags.filter(chosen), row[keep]
    if len(row):
        yield Documents(path, text, row, tags)


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


def words(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__


def _valid_text(
    path: str,
    column: pa.ChunkedArray,
    row: npt.NDArray[np.int64],
    keep: npt.NDArray[np.bool_],
    lost: list[Quarantined],
) -> pa.LargeStringArray:
    """The column as text; a row that is not UTF-8 becomes a null, goes to `lost` and out of `keep`."""
    if pa.types.is_dictionary(column.type):
        column.validate(full=True)  # an index may point past its dictionary
        column = column.cast(column.type.value_type)
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
        if pa.types.is_dictionary(lang.type):
            lang.validate(full=True)
            lang = lang.cast(lang.type.value_type)
        raw = _in_one(lang.cast(pa.binary()))  # numbers and what is nested do not cast
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return none.fill_null(UNKNOWN_LANGUAGE)
    try:
        tags = raw.cast(pa.string())
    except pa.ArrowInvalid:
        tags = pa.array([one if isinstance(one, str) else None for one in map(_decoded, raw.to_pylist())], pa.string())
    return tags.fill_null(UNKNOWN_LANGUAGE)


def _in_one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
