"""The name of the source that a file belongs to, by the file's name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from shoal_data.sources.formats import ARROW, JSON_LINES, PACKED, PARQUET

__all__ = ["source_name", "source_names"]

#: from so many names on that differ in a number alone, glued to a word, it counts shards: f0.txt to f9.txt
_MANY = 10
_UUID = re.compile(r"[-_.]?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}.*$", re.IGNORECASE)
_HADOOP = re.compile(r"part-(?:[rm]-)?\d{4,}(?:[-_.].*)?$")
_OF = re.compile(r"[-_.]?\d+[-_.]?of[-_.]?\d+$")
_YEAR = re.compile(r"(?:^|\D)(?:19|20)\d\d(?:[-_.]?\d\d){0,2}$")
_VERSION = re.compile(r"(?:^|[-_.])v\d+(?:[_.]\d{1,2})*$|\d\.\d{1,2}$", re.IGNORECASE)
_NUMBER = re.compile(r"[-_.]\d+$|(?<=\D)0\d+$")
_GLUED = re.compile(r"(?<=\D)\d+$")


def source_name(path: str) -> str:
    """The source of a file that was given no name: the file's name without extensions, shard numbers and UUIDs.

    A number is one of a shard after `-`, `_` or `.`, or with a leading zero; years, dates and versions stay, and so do
    digits that belong to a word. Where nothing is left, the folder's name is taken.

    >>> source_name("/data/web-00012-of-00100.jsonl.gz"), source_name("wiki_2024.txt"), source_name("c4.jsonl")
    ('web', 'wiki_2024', 'c4')
    """
    folder, _, name = path.rpartition("/")
    stem = _stem(name)
    if _HADOOP.match(stem):
        return "part"
    stem = _UUID.sub("", stem)
    if (fewer := _OF.sub("", stem)) != stem:
        stem = fewer
    elif not _YEAR.search(stem) and not _VERSION.search(stem):
        stem = _NUMBER.sub("", stem)
    if stem.isdigit() and not _YEAR.search(stem):
        stem = ""
    return stem or folder.rpartition("/")[2] or _stem(name)


def source_names(paths: Sequence[str]) -> list[str]:
    """The sources of files that belong together: as `source_name`, but where ten or more names differ only in digits
    that are glued to the same word, the digits count shards."""
    names = [source_name(path) for path in paths]
    numbers: dict[str, set[str]] = defaultdict(set)
    for name in names:
        numbers[_GLUED.sub("", name)].add(name)
    return [short if len(numbers[short := _GLUED.sub("", name)]) >= _MANY else name for name in names]


def _stem(name: str) -> str:
    """Without the extensions that say what is in it, or without the last one if none does."""
    tables = (*JSON_LINES, *PARQUET, *ARROW)
    known = (*tables, *PACKED, ".txt", ".text", ".md", ".snappy", ".zstd", ".gzip", ".lz4", ".brotli")
    stem = name
    while stem.lower().endswith(known) and "." in stem[1:]:
        stem = stem.rpartition(".")[0]
    return stem if stem != name else re.sub(r"(?<=.)\.[A-Za-z]\w*$", "", name)
