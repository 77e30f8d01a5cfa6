"""Reading a manifest that may say anything: its shape, and then one pass over each column of the shard table. Pure."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal_core.errors import UserError
from shoal_core.files import parse_json
from shoal_data.reading.manifest import FORMAT, Manifest, Shards
from shoal_data.reading.order import ROUND, turns_of

__all__ = ["check_manifest", "outside", "parse_manifest"]

_HEX = b"0123456789abcdef"
#: in paths written one a line: a part that is empty, `.` or `..`, or what no path of a corpus holds
_NOT_INSIDE = re.compile(rb"[\n/]\.{0,2}[\n/]|[\\\0]")
#: bytes that all shards together may have, so that sums of columns stay exact
_MOST_BYTES = float(1 << 62)


class _Problem(NamedTuple):
    """What is wrong, and what to do where copying or building the corpus again would not help."""

    text: str
    remedy: str = ""


def outside(paths: Sequence[bytes]) -> int | None:
    """The first of `paths` that does not name something inside the folder it is relative to; None if all do."""
    lines = b"\n".join([b"", *paths, b""])
    if lines.count(b"\n") != len(paths) + 1:
        return next(number for number, path in enumerate(paths) if b"\n" in path)
    found = _NOT_INSIDE.search(lines)
    return None if found is None else lines.count(b"\n", 0, found.start() + 1) - 1


def parse_manifest(content: bytes, where: str, remedy: str) -> tuple[Manifest, str]:
    """The manifest in `content` and its digest (hex SHA-256 of the content).

    Args:
        where: what to call the file in errors.
        remedy: what mends the file where it lies.

    Raises:
        UserError: not a manifest of this format, or one that contradicts itself.
    """
    try:
        value = parse_json(content)
        if value.get("format") != FORMAT:
            raise UserError(f"{where}: field format is {value.get('format')!r}, not {FORMAT!r}", remedy)
        manifest = Manifest(
            dtype=value["dtype"],
            vocab_size=value["vocab_size"],
            sources=value["sources"],
            shards=Shards.from_columns(value["shards"]),
            files=dict(value["files"]),
            weights=value["weights"] and dict(value["weights"]),
            special=dict(value["special"]),
            totals=dict(value["totals"]),
            options=dict(value["options"]),
            version=str(value["version"]),
        )
        check_manifest(manifest, where, remedy)
    except KeyError as error:
        raise UserError(f"{where}: field {error} is missing", remedy) from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: not a corpus manifest ({type(error).__name__}: {error})", remedy) from error
    return manifest, hashlib.sha256(content).hexdigest()


def check_manifest(manifest: Manifest, where: str, remedy: str) -> None:
    """See that nothing in `manifest` would make reading wrong or reach outside of the corpus.

    Args:
        where: what to call the manifest in errors.
        remedy: what mends it where it lies.

    Raises:
        UserError: the first problem.
    """
    for problem in _problems(manifest):
        raise UserError(f"{where}: {problem.text}", problem.remedy or remedy)


def _problems(manifest: Manifest) -> Iterator[_Problem]:
    """Everything that would make reading wrong or reach outside of the corpus, worst first."""
    yield from _values(manifest)
    yield from _files(manifest)
    yield from _shards(manifest)
    yield from _totals(manifest)
    yield from _weights(manifest)


def _values(manifest: Manifest) -> Iterator[_Problem]:
    if manifest.dtype not in ("uint16", "uint32"):
        yield _Problem(f"field dtype is {manifest.dtype!r}, not uint16 or uint32")
        return
    most = 1 << 8 * np.dtype(manifest.dtype).itemsize
    if type(manifest.vocab_size) is not int or not 0 < manifest.vocab_size <= most:
        yield _Problem(
            f"field vocab_size is {manifest.vocab_size!r}, not 1 to the {most} that {manifest.dtype} can tell"
        )
        return
    sources = manifest.sources
    named = isinstance(sources, list) and all(isinstance(name, str) and name for name in sources)
    if not named or len(set(sources)) != len(sources):
        yield _Problem(f"field sources is {sources!r}, not a list of names that differ")
        return
    for role, token in manifest.special.items():
        if type(token) is not int or not 0 <= token < manifest.vocab_size:
            yield _Problem(f"field special.{role} is {token!r}, no id below vocab_size {manifest.vocab_size}")


def _files(manifest: Manifest) -> Iterator[_Problem]:
    if "token_bytes" not in manifest.files:
        yield _Problem("field files.token_bytes is missing")
    for role, entry in manifest.files.items():
        for name in ("file", "sha256"):
            if not isinstance(entry, dict) or not isinstance(entry.get(name), str):
                yield _Problem(f"field files.{role}.{name} is missing")
                return
        if outside([entry["file"].encode()]) is not None:
            yield _Problem(f"field files.{role}.file is {entry['file']!r}, no path inside the corpus folder")


def _shards(manifest: Manifest) -> Iterator[_Problem]:
    table, itemsize = manifest.shards, np.dtype(manifest.dtype).itemsize
    columns = vars(table)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        yield _Problem(f"field shards: its columns have different lengths ({lengths})")
        return
    if len(table) == 0:
        yield _Problem("field shards: there is none")
        return
    paths = table.file.tolist()
    wrong = outside(paths)
    if wrong is not None:
        yield _Problem(f"field shards.file of shard {wrong} is {paths[wrong]!r}, no path inside the corpus folder")
    if len(set(paths)) != len(paths):
        yield _Problem("field shards.file: a path is there twice")

    def refused(name: str, bad: npt.NDArray[np.bool_], why: str) -> Iterator[_Problem]:
        if bad.any():
            at = int(bad.argmax())
            yield _Problem(f"field shards.{name} of shard {at} ({paths[at].decode()}) is {columns[name][at]}: {why}")

    for name in ("size", "offset", "tokens", "documents", "text_bytes"):
        yield from refused(name, columns[name] < 0, "it is not negative")
    room = table.size - table.offset
    yield from refused("offset", table.offset % itemsize != 0, f"no multiple of the {itemsize} bytes of a token")
    yield from refused("offset", room < 0, "it lies behind the end of the file")
    yield from refused("tokens", table.tokens > room // itemsize, "they reach behind the end of the file")
    many = len(manifest.sources)
    yield from refused("source", (table.source < 0) | (table.source >= many), f"there are {many} sources")
    digests = table.sha256.tolist()
    if b"".join(digests).translate(None, _HEX) or {len(digest) for digest in digests} != {64}:
        yield _Problem("field shards.sha256: not 64 hexadecimal digits each")
    if table.size.sum(dtype=np.float64) >= _MOST_BYTES:
        yield _Problem("field shards.size: more bytes together than any store holds")


def _totals(manifest: Manifest) -> Iterator[_Problem]:
    table = manifest.shards
    for name, column in (("tokens", table.tokens), ("documents", table.documents), ("bytes", table.text_bytes)):
        found = manifest.totals.get(name)
        if found is not None and found != int(column.sum()):
            yield _Problem(f"field totals.{name} is {found}, the shards have {int(column.sum())}")


def _weights(manifest: Manifest) -> Iterator[_Problem]:
    weights, sources = manifest.weights, manifest.sources
    if weights is None:
        return
    again = "tokenize again into a new --out; give --mixture a weight above 0 for each source that has documents"
    if sorted(weights) != sorted(sources):
        yield _Problem(f"field weights names {', '.join(sorted(weights))}; the sources are {', '.join(sources)}", again)
        return
    values = [weights[name] for name in sources]
    if not all(type(value) in (int, float) and math.isfinite(value) and value > 0 for value in values):
        yield _Problem(f"field weights is {weights}: a weight is a number above 0", again)
        return
    try:
        turns = turns_of(values)
    except ValueError as error:
        yield _Problem(f"field weights: {error}", again)
        return
    tokens = np.bincount(manifest.shards.source, weights=manifest.shards.tokens, minlength=len(sources))
    for name, value, turn, held in zip(sources, values, turns.tolist(), tokens.tolist(), strict=True):
        if not held:
            yield _Problem(f"field weights: source {name!r} weighs {value:.6g} and has no tokens", again)
        if not turn:
            why = f"less than a turn in {ROUND:,}, so it would never be read"
            yield _Problem(f"field weights: source {name!r} weighs {value:.6g}, {why}", again)
