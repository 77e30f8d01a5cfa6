"""From globs to parts: which stretches of which files one task works on.

The plan is a pure function of the files and their sizes, so that a job that is run again finds the same parts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow.parquet as pq

from shoal_data.build.filesystem import Found, find_files, open_file
from shoal_data.errors import InputError

__all__ = ["Part", "Piece", "plan_parts", "source_name"]

_COMPRESSED = (".gz", ".zst")
_SMALLEST, _LARGEST = 4 << 20, 32 << 20
_NOTHING = "check the pattern (quote it, so that the shell does not expand it) and that the files exist"


@dataclass(frozen=True)
class Piece:
    """A stretch of one input file: row groups of Parquet, lines of JSONL, or the whole file.

    Attributes:
        path: the file, as it was found.
        format: `parquet`, `jsonl` or `text`.
        first, last: half-open range of row groups (Parquet) or bytes (JSONL); 0, 0 for the whole file.
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


def plan_parts(inputs: Sequence[str], column: str, target: int) -> list[Part]:
    """Cut the files that `inputs` name into parts of about `target` bytes of text.

    Args:
        inputs: globs (`**` for any depth), each with an optional `NAME=` in front that names its source.
        column: the column or field with the text.
        target: bytes of text a part; small files share a part, large ones are cut at row groups or lines. 0 to choose:
            an eighth of the text, within 4 to 32 MiB, so that small jobs run in parallel and large ones stay few.

    Raises:
        InputError: a glob that matches nothing.
    """
    files: dict[str, tuple[str, Found]] = {}
    for pattern in inputs:
        name, path_glob = _named(pattern)
        found = find_files(path_glob)
        if not found:
            raise InputError(f"--input {pattern!r}: no file matches", _NOTHING)
        for file in found:
            files.setdefault(file.path, (name or source_name(file.path), file))
    text = sum(_text_size(path, file.size) for path, (_, file) in files.items())
    target = target or min(_LARGEST, max(_SMALLEST, text // 8))
    by_source: dict[str, list[Piece]] = {}
    for path, (source, file) in files.items():
        pieces = _pieces(path, file.size, column, target)
        by_source.setdefault(source, []).extend(replace(piece, stamp=file.stamp) for piece in pieces)
    parts: list[Part] = []
    for source in sorted(by_source):
        group: list[Piece] = []
        for piece in by_source[source]:
            if group and sum(one.size for one in group) + piece.size > target:
                parts.append(Part(len(parts), source, tuple(group)))
                group = []
            group.append(piece)
        parts.append(Part(len(parts), source, tuple(group)))
    return parts


def source_name(path: str) -> str:
    """The source of a file that was given no name: its stem without shard numbers.

    >>> source_name("/data/web-00012-of-00100.jsonl.gz")
    'web'
    """
    stem = os.path.basename(path)
    while True:
        stem, suffix = os.path.splitext(stem)
        if not suffix:
            break
    return re.sub(r"([-_.]?\d+([-_]of[-_]\d+)?)$", "", stem) or stem


def _named(pattern: str) -> tuple[str, str]:
    found = re.match(r"([A-Za-z0-9_.-]+)=(.+)", pattern)
    return (found[1], found[2]) if found else ("", pattern)


def _text_size(path: str, size: int) -> int:
    """Bytes of text in a file, guessed from its size: compressed formats hold about four times as much."""
    packed = path.lower().endswith((*_COMPRESSED, ".parquet", ".pq"))
    return size * (4 if packed else 1)


def _pieces(path: str, size: int, column: str, target: int) -> list[Piece]:
    stem = path.lower()
    compressed = stem.endswith(_COMPRESSED)
    if compressed:
        stem = stem.rpartition(".")[0]
    if stem.endswith((".parquet", ".pq")):
        return _row_groups(path, column, target, size)
    if stem.endswith((".jsonl", ".ndjson", ".json")):
        return [Piece(path, "jsonl", 0, 0, 0, size * 4)] if compressed else _lines(path, size, target)
    return [Piece(path, "text", 0, 0, 0, size * 4 if compressed else size)]


def _row_groups(path: str, column: str, target: int, size: int) -> list[Piece]:
    try:
        with open_file(path) as file:
            footer = pq.read_metadata(file)
    except (OSError, ValueError):  # the task that reads it says what is wrong and quarantines the file
        return [Piece(path, "parquet", 0, 0, 0, size)]
    names = [footer.schema.column(index).path for index in range(footer.num_columns)]
    text = next((index for index, name in enumerate(names) if name == column), None)
    pieces: list[Piece] = []
    first = row = held = rows = 0
    for group in range(footer.num_row_groups):
        meta = footer.row_group(group)
        held += meta.total_byte_size if text is None else meta.column(text).total_uncompressed_size
        rows += meta.num_rows
        if held >= target or group == footer.num_row_groups - 1:
            pieces.append(Piece(path, "parquet", first, group + 1, row, held))
            first, row, held, rows = group + 1, row + rows, 0, 0
    return pieces


def _lines(path: str, size: int, target: int) -> list[Piece]:
    """Cut at the first line break at or after each `target` bytes, counting the lines before each cut."""
    if size <= target * 2:
        return [Piece(path, "jsonl", 0, size, 0, size)]
    pieces: list[Piece] = []
    with open_file(path) as file:
        first = row = 0
        while first < size and (block := file.read(target)):
            length, lines = len(block), block.count(b"\n")
            while not block.endswith(b"\n") and (block := file.read(1 << 20)):
                cut = block.find(b"\n") + 1
                length += cut or len(block)
                if cut:
                    lines += 1
                    file.seek(first + length)
                    break
            pieces.append(Piece(path, "jsonl", first, first + length, row, length))
            first += length
            row += lines
    return pieces
