"""The manifest of a record on a store: which objects, in order, make up which file, and whose the record is. Pure.

It is the one object of a record that is ever replaced, and only by a compare-and-swap: whoever reads it sees a state
that was there, and whoever lost the record can publish nothing more. All other objects are written once, under names
that are never used again, and deleted when no manifest has named them for a while.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter, ValidationError

from shoal.record.lease import Holder

__all__ = ["LARGEST", "NAME", "Dropped", "Manifest", "Part", "dump", "parse", "parts_kept", "pieces", "with_files"]

NAME = "manifest.json"
LARGEST = 8 << 20
"""Bytes of a part that no further lines are merged into, and that no part is larger than."""
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """A stretch of a file, as an object. `name`: within the record's own place; `sha256`: of its bytes, in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Dropped:
    """An object that is no part of any file any more, since `since` (unix seconds): readers of an older manifest may
    still ask for it."""

    name: str
    since: float


@dataclass(frozen=True)
class Manifest:
    """What a record on a store is made of.

    Attributes:
        generation: grows by one with every holder; names of objects begin with it.
        writes: grows by one with every manifest, so that no two are the same.
        holder: who writes the record now; None: nobody.
        token: the holder's own, by which it knows its own writes again.
        files: each file's parts in order, by its path in the run directory.
        written: when they were that (unix seconds, by the holder's clock).
    """

    generation: int = 0
    writes: int = 0
    holder: Holder | None = None
    token: str = ""
    files: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    written: float = 0.0

    def taken(self, holder: Holder, token: str) -> Manifest:
        """The same record in the hands of another."""
        return replace(self, generation=self.generation + 1, writes=self.writes + 1, holder=holder, token=token)

    def left(self) -> Manifest:
        """The same record, which nobody writes any more."""
        return replace(self, writes=self.writes + 1, holder=None)

    def names(self) -> set[str]:
        """Objects that make it up, or did until lately."""
        return {part.name for parts in self.files.values() for part in parts} | {one.name for one in self.dropped}


def with_files(
    before: Manifest, files: Mapping[str, tuple[Part, ...]], now: float, keep: float
) -> tuple[Manifest, list[str]]:
    """The manifest that follows `before` when its files are `files`, and the objects that may be deleted once it
    stands: those dropped more than `keep` seconds before `now`."""
    here = {part.name for parts in files.values() for part in parts}
    lost = sorted({part.name for parts in before.files.values() for part in parts} - here)
    old = [one.name for one in before.dropped if now - one.since > keep]
    young = tuple(one for one in before.dropped if now - one.since <= keep)
    dropped = young + tuple(Dropped(name, now) for name in lost)
    return replace(before, writes=before.writes + 1, files=dict(files), dropped=dropped, written=now), old


def parts_kept(sizes: Sequence[int], fresh: int, largest: int = LARGEST) -> int:
    """How many of a file's parts (of `sizes` bytes) stay when `fresh` bytes come after them; the others are written
    again together with these. A file of n parts of `largest` has O(n + log largest) parts at any time, and each byte is
    written O(log largest) times.

    >>> parts_kept([64, 8, 4], 1), parts_kept([64, 8, 4], 4), parts_kept([64, 8, 4], 1, largest=2)
    (3, 1, 3)
    """
    count, together = len(sizes), fresh
    while count and sizes[count - 1] <= together and together + sizes[count - 1] <= largest:
        together += sizes[count - 1]
        count -= 1
    return count


def pieces(start: int, end: int, largest: int = LARGEST) -> list[range]:
    """The bytes from `start` to `end` in stretches of at most `largest`.

    >>> pieces(2, 9, 4)
    [range(2, 6), range(6, 9)]
    """
    return [range(one, min(one + largest, end)) for one in range(start, end, largest)]


def dump(manifest: Manifest) -> bytes:
    """As it lies on the store."""
    return _ADAPTER.dump_json(manifest) + b"\n"


def parse(content: bytes) -> Manifest:
    """A manifest as it was read.

    Raises:
        ValueError: it is none, or names a file or an object outside of the record.
    """
    try:
        found = _ADAPTER.validate_json(content, strict=True)
    except ValidationError as error:
        raise ValueError(f"is no manifest of a record ({error.errors()[0]['msg']})") from error
    for file, parts in found.files.items():
        if not _inside(file) or any(not _inside(part.name) for part in parts):
            raise ValueError(f"names a file outside of the record: {file!r}")
        if any(part.bytes < 0 or not _HASH.fullmatch(part.sha256) for part in parts):
            raise ValueError(f"has no sizes and hashes of {file!r}")
    if any(not _inside(one.name) for one in found.dropped):
        raise ValueError("names an object outside of the record")
    return found


def _inside(name: str) -> bool:
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


_ADAPTER: TypeAdapter[Manifest] = TypeAdapter(Manifest)
