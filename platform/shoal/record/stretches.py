"""Which part of a local file is what a manifest says of it: what need not be sent, or brought, again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shoal.record import layout
from shoal.record.manifest import Part

__all__ = ["GROWS", "Known", "files_of", "holds", "read_at"]

GROWS = ".jsonl"
"""Ending of the names of files whose lines count one by one; of all others only the whole counts."""
FIRST = (layout.RUN, layout.REPORT, layout.STATUS, layout.PLAN)
LAST = (layout.STEPS, layout.SAMPLES, layout.EVENTS)
"""What is written after others and tells of them is looked at before them."""
_BLOCK = 1 << 20


def files_of(folder: Path) -> list[str]:
    """The files that make up the record in `folder`, by their paths in it, in the order to look at them."""
    found = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    found -= {layout.LEASE}
    middle = sorted(found - set(FIRST) - set(LAST))
    return [name for name in FIRST if name in found] + middle + [name for name in LAST if name in found]


def read_at(file: int, span: range) -> Iterator[bytes]:
    """The bytes of an open file in `span`, block by block; fewer if it ends before."""
    at = span.start
    while at < span.stop and (block := os.pread(file, min(_BLOCK, span.stop - at), at)):
        at += len(block)
        yield block


class Known:
    """Remembers what was compared already, so that a file that only grows is read once. It holds such files open: no
    other gets their inodes meanwhile."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, tuple[Part, ...]]] = {}

    def matching(self, name: str, file: int, parts: Sequence[Part]) -> tuple[int, int]:
        """How many of `parts`, from the first on, the open file begins with, and how many bytes they are."""
        found = os.fstat(file)
        held, before = self._seen.get(name, (file, ()))
        if not os.path.samestat(os.fstat(held), found):
            before = ()
        count = done = 0
        for number, part in enumerate(parts):
            if done + part.bytes > found.st_size:
                break
            same = name.endswith(GROWS) and before[number : number + 1] == (part,)
            if not same and not _is(file, range(done, done + part.bytes), part.sha256):
                break
            count, done = count + 1, done + part.bytes
        self.note(name, file, parts[:count])
        return count, done

    def note(self, name: str, file: int, parts: Sequence[Part]) -> None:
        """The open file begins with `parts`."""
        former = self._seen.get(name)
        self._seen[name] = (os.dup(file), tuple(parts))
        if former is not None:
            os.close(former[0])

    def close(self) -> None:
        """Release the files."""
        for file, _ in self._seen.values():
            os.close(file)
        self._seen.clear()


def holds(file: int, parts: Sequence[Part]) -> bool:
    """Whether the open file begins with `parts`."""
    done = 0
    for part in parts:
        if not _is(file, range(done, done + part.bytes), part.sha256):
            return False
        done += part.bytes
    return True


def _is(file: int, span: range, sha256: str) -> bool:
    digest = hashlib.sha256()
    for block in read_at(file, span):
        digest.update(block)
    return digest.hexdigest() == sha256
