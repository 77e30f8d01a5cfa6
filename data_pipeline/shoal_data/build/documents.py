"""Reading documents out of input files as Arrow columns; what cannot be read is quarantined, never dropped silently.

Broken input is the slow path: columns are checked as a whole, and only a column that fails is looked at row by row.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq
import zstandard

from shoal_data.build.filesystem import open_file
from shoal_data.build.inputs import Piece

__all__ = ["Documents", "Quarantined", "read_piece"]

UNKNOWN_LANGUAGE = "und"
_JSON_BYTES = 1 << 30


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
    """Something that was not taken in: which file, which row (None: the file from there on), and why."""

    file: str
    row: int | None
    cause: str


def read_piece(piece: Piece, column: str, quarantine: list[Quarantined]) -> Iterator[Documents]:
    """The documents of `piece`, in batches that fit in memory; what is broken goes to `quarantine`."""
    if piece.format == "parquet":
        yield from _parquet(piece, column, quarantine)
    elif piece.format == "jsonl":
        yield from _jsonl(piece, column, quarantine)
    else:
        yield from _text(piece, quarantine)


def _parquet(piece: Piece, column: str, quarantine: list[Quarantined]) -> Iterator[Documents]:
    row = piece.row
    try:
        with open_file(piece.path) as opened, pq.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            if column not in names:
                cause = f"no column {column!r} (it has {', '.join(names)})"
                quarantine.append(Quarantined(piece.path, None, cause))
                return
            wanted = [column, "lang"] if "lang" in names else [column]
            for group in range(piece.first, piece.last or file.num_row_groups):
                table = file.read_row_group(group, columns=wanted, use_threads=False)
                lang = table["lang"] if "lang" in names else None
                yield from _clean(piece.path, table[column], lang, row, quarantine)
                row += len(table)
    except (OSError, ValueError, pa.ArrowException) as error:
        quarantine.append(Quarantined(piece.path, row or None, f"unreadable Parquet: {_first_line(error)}"))


def _jsonl(piece: Piece, column: str, quarantine: list[Quarantined]) -> Iterator[Documents]:
    content = _whole_file(piece, quarantine)
    if not content.strip():
        return
    row = piece.row
    for stretch in _stretches(content):
        table = _json_table(stretch, column)
        if table is None:
            table = _lines_one_by_one(piece.path, stretch, row, column, quarantine)
        yield from _clean(piece.path, table[column], table["lang"], row, quarantine)
        row += len(table)


def _stretches(content: bytes) -> Iterator[bytes]:
    """`content` cut at line breaks: Arrow's reader takes less than 2 GiB at a time."""
    first = 0
    while first < len(content):
        last = len(content)
        if last - first > _JSON_BYTES:
            last = content.find(b"\n", first + _JSON_BYTES) + 1 or last
        yield content if last - first == len(content) else content[first:last]
        first = last


def _json_table(content: bytes, column: str) -> pa.Table | None:
    """The lines of `content`, or None if Arrow does not read a row for each."""
    schema = pa.schema([(column, pa.large_string()), ("lang", pa.string())])
    try:
        table = pyarrow.json.read_json(
            io.BytesIO(content),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=max(1 << 20, len(content) + 1)),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except (ValueError, OverflowError, pa.ArrowException):
        return None
    return table if len(table) == content.rstrip(b"\n").count(b"\n") + 1 else None


def _lines_one_by_one(path: str, content: bytes, row: int, column: str, quarantine: list[Quarantined]) -> pa.Table:
    """The slow path of JSONL: rows that do not parse become empty bytes, which say why in the quarantine."""
    texts: list[bytes | None] = []
    langs: list[str | None] = []
    for number, line in enumerate(content.split(b"\n")[: None if content[-1:] != b"\n" else -1], start=row):
        try:
            value: Any = json.loads(line)
            text = value.get(column) if isinstance(value, dict) else None
            if not isinstance(text, str):
                raise ValueError(f"no text in field {column!r}")
            texts.append(text.encode())
            lang = value.get("lang")
            langs.append(lang if isinstance(lang, str) else None)
        except ValueError as error:
            quarantine.append(Quarantined(path, number, f"unreadable JSON line: {_first_line(error)}"))
            texts.append(_SAID)
            langs.append(None)
    return pa.table({column: pa.array(texts, pa.large_binary()), "lang": pa.array(langs, pa.string())})


def _text(piece: Piece, quarantine: list[Quarantined]) -> Iterator[Documents]:
    content = _whole_file(piece, quarantine)
    yield from _clean(piece.path, pa.chunked_array([pa.array([content], pa.large_binary())]), None, 0, quarantine)


def _whole_file(piece: Piece, quarantine: list[Quarantined]) -> bytes:
    with open_file(piece.path) as file:
        if not piece.path.lower().endswith((".gz", ".zst")):
            file.seek(piece.first)
            return file.read(piece.last - piece.first if piece.last else -1)
        read: list[bytes] = []
        try:
            read.extend(_unpacked(file, gzip=piece.path.lower().endswith(".gz")))
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            whole, _, _ = b"".join(read).rpartition(b"\n")
            rows = whole.count(b"\n") + 1 if whole else 0
            quarantine.append(Quarantined(piece.path, rows, f"truncated or corrupt: {_first_line(error)}"))
            return whole if piece.format == "jsonl" else b""
        return b"".join(read)


def _unpacked(file: BinaryIO, *, gzip: bool) -> Iterator[bytes]:
    """The content of a gzip or zstd file of any number of members; what could be read comes before the error.

    Raises:
        EOFError: it ends within a member.
        zlib.error, zstandard.ZstdError: it is corrupt.
    """

    def member() -> Any:
        return zlib.decompressobj(wbits=31) if gzip else zstandard.ZstdDecompressor().decompressobj()

    unpack, begun = member(), False
    while block := file.read(1 << 20):
        while block:
            if unpack.eof:
                unpack = member()
            begun = True
            yield unpack.decompress(block)
            block = unpack.unused_data if unpack.eof else b""
    if begun and not unpack.eof:
        raise EOFError("it ends before its end-of-stream mark")


_SAID = b"\xff"  # stands in for a row whose cause is already in the quarantine


def _clean(
    path: str, column: pa.ChunkedArray, lang: pa.ChunkedArray | None, first_row: int, quarantine: list[Quarantined]
) -> Iterator[Documents]:
    """The column as valid, non-empty text, without the rows that are not."""
    if len(column) == 0:
        return
    row = np.arange(first_row, first_row + len(column))
    keep = np.ones(len(column), bool)
    if column.null_count:
        for number in np.flatnonzero(column.is_null().to_numpy()):
            quarantine.append(Quarantined(path, int(row[number]), "null text"))
            keep[number] = False
    try:
        text = _in_one(column.cast(pa.large_string()))
        text.validate(full=True)  # a string column read from a file may hold bytes that are not UTF-8
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        try:
            column = column.cast(pa.large_binary())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            quarantine.append(Quarantined(path, None, f"the text column is {column.type}: {_first_line(error)}"))
            return
        text = _decode_one_by_one(path, column, row, keep, quarantine)
    empty = pc.equal(pc.binary_length(text), 0).fill_null(False).to_numpy(zero_copy_only=False)
    for number in np.flatnonzero(empty & keep):
        quarantine.append(Quarantined(path, int(row[number]), "empty document"))
    keep &= ~empty
    tags = pa.nulls(len(text), pa.string()) if lang is None else _in_one(lang.cast(pa.string()))
    tags = tags.fill_null(UNKNOWN_LANGUAGE)
    if not keep.all():
        chosen = pa.array(keep)
        text, tags, row = text.filter(chosen), tags.filter(chosen), row[keep]
    if len(row):
        yield Documents(path, text, row, tags)


def _in_one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _decode_one_by_one(
    path: str,
    column: pa.ChunkedArray,
    row: npt.NDArray[np.int64],
    keep: npt.NDArray[np.bool_],
    quarantine: list[Quarantined],
) -> pa.LargeStringArray:
    texts: list[str | None] = []
    for number, value in enumerate(column.to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError as error:
            if value != _SAID:
                cause = f"invalid UTF-8 at byte {error.start}"
                quarantine.append(Quarantined(path, int(row[number]), cause))
            keep[number] = False
            texts.append(None)
    return pa.array(texts, pa.large_string())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
