"""From globs to parts: which stretches of which files one task works on.

The plan is a pure function of the files and their stamps, so that a job that is run again finds the same parts.
"""

from __future__ import annotations

import codecs
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shoal_core.errors import UserError
from shoal_data.progress import Count
from shoal_data.sources.arrow_messages import BrokenArrow, messages
from shoal_data.sources.dataset_folder import MAPPED, data_files
from shoal_data.sources.filesystem import Found, is_local
from shoal_data.sources.formats import format_of, is_packed
from shoal_data.sources.gather import gather
from shoal_data.sources.hub_dataset import STREAMED, is_first_shard
from shoal_data.sources.opening import open_file
from shoal_data.sources.schema import check_column

__all__ = ["Part", "Piece", "plan_parts"]

_SMALLEST, _LARGEST = 4 << 20, 32 << 20
_BLOCK = 4 << 20
# Marks of UTF-16 and UTF-32, whose line breaks are no single bytes: such a file is not cut.
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_AT_ONCE = 16  # files of a store that are looked into side by side: an answer takes long, and little of this machine
_QUEUED = 1 << 10


@dataclass(frozen=True)
class Piece:
    """A stretch of one input file: row groups of Parquet, batches of Arrow, lines of JSONL, or the whole file.

    Attributes:
        path: the file, as it was found.
        format: `parquet`, `arrow`, `jsonl` or `text`.
        first, last: half-open range of row groups (Parquet) or bytes (Arrow, JSONL); 0, 0 for the whole file.
        row: number of the first row.
        size: bytes of text, estimated.
        stamp: what tells the file's content from a later one (see `stamp_of`); empty where nothing is to be compared.
    """

    path: str
    format: str
    first: int
    last: int
    row: int
    size: int
    stamp: str = ""


@dataclass(frozen=True)
class Part:
    """What one task does, once or not at all: pieces of one source."""

    id: int
    source: str
    pieces: tuple[Piece, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Part:
        """The inverse of `to_json`."""
        return Part(value["id"], value["source"], tuple(Piece(**piece) for piece in value["pieces"]))


def plan_parts(
    inputs: Sequence[str], column: str, target: int, *, join: str | None = None, split: str | None = None
) -> list[Part]:
    """Cut the files that `inputs` name into parts of about `target` bytes of text.

    Args:
        inputs: globs (`**` for any depth), each with an optional `NAME=` in front that names its source.
        column: the column or field with the text.
        target: bytes of text a part; small files share a part, large ones are cut at row groups or lines. 0 to choose:
            an eighth of the text, within 4 to 32 MiB, so that small jobs run in parallel and large ones stay few.
        join: what is put between the strings of a list, where the column holds lists.
        split: which of the datasets of a folder that `datasets` wrote, where there are several.

    Raises:
        UserError: a glob that matches nothing; files that cannot be read, of a kind that is not read, or that change;
            a few Parquet or Arrow files, none of which has text in the column.
        StoreError: a store that does not answer.
    """
    with Count("planning", "names") as named:
        files = gather(inputs, named.advance, split)
    text = sum(_text_size(file) for _, file in files)
    target = target or min(_LARGEST, max(_SMALLEST, text // 8))
    by_source: dict[str, list[Piece]] = {}
    with Count("planning", "files", len(files)) as seen:
        for (source, _), pieces in zip(files, _cut([file for _, file in files], target), strict=True):
            by_source.setdefault(source, []).extend(pieces)
            seen.advance(1)
    parts: list[Part] = []
    for source in sorted(by_source):
        for group in _grouped(by_source[source], target):
            parts.append(Part(len(parts), source, tuple(group)))
    check_column([path for _, file in files for path in _with_columns(file)], column, join)
    return parts


def _with_columns(file: Found) -> list[str]:
    """The files whose schema is that of a file's rows."""
    if file.format == MAPPED:
        return data_files(file.path.rpartition("/")[0])
    return [] if file.format == STREAMED and not is_first_shard(file.path) else [file.path]


def _grouped(pieces: Sequence[Piece], target: int) -> Iterator[list[Piece]]:
    """Neighbours, together `target` bytes at most unless one alone has more."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        if group and size + piece.size > target:
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece.size
    if group:
        yield group


def _text_size(file: Found) -> int:
    """Bytes of text in a file, guessed from its size: compressed formats hold about four times as much."""
    return file.size * (4 if is_packed(file.path) or format_of(file.path) == "parquet" else 1)


def _cut(files: Sequence[Found], target: int) -> Iterator[list[Piece]]:
    """The pieces of each file, in order."""
    cut = partial(_pieces, target=target)
    if all(is_local(file.path) for file in files):
        yield from map(cut, files)
        return
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        for first in range(0, len(files), _QUEUED):
            yield from pool.map(cut, files[first : first + _QUEUED])
    finally:
        pool.shutdown(cancel_futures=True)


def _pieces(file: Found, target: int) -> list[Piece]:
    """The pieces of a file; where nothing is to be cut, its whole content."""
    kind = file.format or format_of(file.path)
    if kind == "parquet":
        pieces = _row_groups(file, target)
    elif kind == "arrow":
        pieces = _batches(file, target)
    elif kind == MAPPED:
        pieces = _picked(file, target)
    elif kind == "jsonl" and not is_packed(file.path):
        pieces = _lines(file, target)
    else:
        pieces = [Piece(file.path, kind, 0, 0, 0, _text_size(file))]
    return [replace(piece, stamp=file.stamp) for piece in pieces]


def _row_groups(file: Found, target: int) -> list[Piece]:
    """Cut between row groups, by the bytes of all their columns.

    Those of the text alone are not asked for: where a footer's entry for a column is damaged or encrypted, Arrow ends
    the process instead of raising an error.
    """
    try:
        with open_file(file.path, file.stamp) as opened:
            footer = pq.read_metadata(opened)
    except (OSError, ValueError, pa.ArrowException):  # the task that reads it says what is wrong and quarantines it
        return [Piece(file.path, "parquet", 0, 0, 0, file.size)]
    pieces: list[Piece] = []
    first = row = held = rows = 0
    for group in range(footer.num_row_groups):
        meta = footer.row_group(group)
        held += max(0, meta.total_byte_size)
        rows += meta.num_rows
        if held >= target or group == footer.num_row_groups - 1:
            pieces.append(Piece(file.path, "parquet", first, group + 1, row, held))
            first, row, held, rows = group + 1, row + rows, 0, 0
    return pieces or [Piece(file.path, "parquet", 0, 0, 0, 0)]


def _batches(file: Found, target: int) -> list[Piece]:
    """Cut between record batches, by their bytes."""
    pieces: list[Piece] = []
    first = row = rows = last = 0
    try:
        with open_file(file.path, file.stamp) as opened:
            for message in messages(opened, file.size):
                if message.kind == "batch":
                    first = first or message.first
                    last, rows = message.last, rows + message.rows
                    if last - first >= target:
                        pieces.append(Piece(file.path, "arrow", first, last, row, last - first))
                        first, row, rows = 0, row + rows, 0
    except BrokenArrow:  # the task that reads on from there says what is wrong and quarantines it
        first = first or last
        if pieces and first == file.size:
            return pieces
        return [*pieces, Piece(file.path, "arrow", first, file.size if first else 0, row, file.size - first)]
    if first or not pieces:
        pieces.append(Piece(file.path, "arrow", first, last, row, last - first))
    return pieces


def _picked(file: Found, target: int) -> list[Piece]:
    """Cut between the indices that pick the rows of a saved dataset, taking all rows to be of one size.

    Raises:
        UserError: they cannot be read.
    """
    try:
        with open_file(file.path) as opened:
            rows = sum(message.rows for message in messages(opened, opened.seek(0, os.SEEK_END)))
    except BrokenArrow as error:
        raise UserError(f"{file.path}: {error}", "fetch the folder again") from error
    count = max(1, min(rows, -(-file.size // target)))
    bounds = [rows * number // count for number in range(count + 1)]
    return [Piece(file.path, MAPPED, a, b, a, file.size // count) for a, b in itertools.pairwise(bounds)]


def _lines(file: Found, target: int) -> list[Piece]:
    """Cut at the first line break at or after each `target` bytes, counting the lines before each cut."""
    if file.size <= target * 2:
        return [Piece(file.path, "jsonl", 0, file.size, 0, file.size)]
    pieces: list[Piece] = []
    first = row = lines = place = 0
    with open_file(file.path, file.stamp) as opened:
        while block := opened.read(_BLOCK):
            if not place and block.startswith(_WIDE):
                return [Piece(file.path, "jsonl", 0, 0, 0, file.size)]
            begin = 0
            while cut := block.find(b"\n", max(begin, first + target - 1 - place)) + 1:
                lines += block.count(b"\n", begin, cut)
                pieces.append(Piece(file.path, "jsonl", first, place + cut, row, place + cut - first))
                first, row, lines, begin = place + cut, row + lines, 0, cut
            lines += block.count(b"\n", begin)
            place += len(block)
    if place != file.size:
        raise UserError(
            f"{file.path}: it changed from {file.size:,} to {place:,} bytes while the work was planned",
            "run again when nobody writes to it",
        )
    if first < place:
        pieces.append(Piece(file.path, "jsonl", first, place, row, place - first))
    return pieces
