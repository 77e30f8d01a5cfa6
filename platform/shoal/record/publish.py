"""Brings a record from its local folder to a store, again and again: what is new of it, then the manifest of all.

A file of lines that grew gets one more part, into which small ones before it are merged; one that was cut or replaced
keeps the parts that it still begins with. What fails is done again by the next round, as is what a publisher that was
killed began: nothing of it counts before the manifest says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from shoal.record.grip import PARTS, Grip
from shoal.record.manifest import Part, parts_kept, pieces, with_files
from shoal.record.stretches import GROWS, Known, files_of, holds, read_at

__all__ = ["KEEP", "Publisher"]

KEEP = 300.0
"""Seconds for which an object is kept that no manifest names any more: for a reader who is that slow."""
LOOKS = 50
"""Times that the files are looked at, until none has changed between two looks."""
Seen = dict[str, tuple[int, int]]
"""Of each file: open for reading, and its size."""
Mark = tuple[int, int, int]
"""A file's inode, time and size."""


class Publisher:
    """Of the record in `folder`, which `grip` holds on the store. One thread at a time.

    Attributes:
        folder: as it was given.
    """

    def __init__(self, folder: Path, grip: Grip, keep: float = KEEP) -> None:
        self.folder, self._grip, self._keep = folder, grip, keep
        self._known = Known()
        self._whole: dict[str, tuple[Mark, tuple[Part, ...]]] = {}
        """Of each file that counts as a whole: how it was when it was last read, and what it is made of since."""
        self._count = 0
        self._astray: set[str] = set()
        """Objects that were written for a manifest that may not have come to be."""
        self._swept = False

    def round(self) -> None:
        """Publish what the folder holds now.

        Raises:
            LeaseLost: another session has the record: nothing was published, and never will be from here.
            StoreError: the store does not take it; try again later. OSError: the folder cannot be read.
        """
        now = time.time()
        with self._look() as seen:
            files = {name: self._parts(name, file, size) for name, (file, size) in seen.items()}
            wanted, old = with_files(self._grip.manifest, files, now, self._keep)
            done = self._grip.swap(wanted)
            self._astray -= self._grip.manifest.names()
            if not done:
                return
            for name, (file, _) in seen.items():
                if name.endswith(GROWS):
                    self._known.note(name, file, files[name])
        self._grip.store.delete([*old, *self._astray])
        self._astray.clear()
        if not self._swept:
            self._sweep()

    def release(self) -> None:
        """Leave the record to whoever comes next, who need not watch. Raises: as `round`."""
        self._grip.release()
        self.close()

    def close(self) -> None:
        """Release the files."""
        self._known.close()

    def _sweep(self) -> None:
        """Delete what former holders wrote and never named."""
        names = self._grip.manifest.names()
        found = (entry.name for entry in self._grip.store.list(f"{PARTS}/"))
        mine = f"{PARTS}/{self._grip.manifest.generation:06d}/"
        self._grip.store.delete([name for name in found if name not in names and name < mine])
        self._swept = True

    @contextlib.contextmanager
    def _look(self) -> Iterator[Seen]:
        """The files as they are at one moment: none has changed between two looks at all of them."""
        seen: Seen = {}
        try:
            for _ in range(LOOKS):
                before, seen = seen, _opened(self.folder)
                same = _marks(before) == _marks(seen)
                _release(before)
                if same:
                    break
            yield seen
        finally:
            _release(seen)

    def _parts(self, name: str, file: int, size: int) -> tuple[Part, ...]:
        """What the manifest is to say of a file; what is missing on the store is put there."""
        published = self._grip.manifest.files.get(name, ())
        if not name.endswith(GROWS):
            return self._whole_parts(name, file, size, published)
        count, done = self._known.matching(name, file, published)
        end = _whole_lines(file, size)
        if done >= end:
            return published[:count]
        stay = parts_kept([part.bytes for part in published[:count]], end - done)
        start = sum(part.bytes for part in published[:stay])
        return (*published[:stay], *(self._put(name, file, span) for span in pieces(start, end)))

    def _whole_parts(self, name: str, file: int, size: int, published: tuple[Part, ...]) -> tuple[Part, ...]:
        """The same of a file that counts as a whole only."""
        found = os.fstat(file)
        mark = (found.st_ino, found.st_mtime_ns, size)
        if self._whole.get(name) == (mark, published):
            return published
        parts = published
        if size != sum(part.bytes for part in parts) or not holds(file, parts):
            parts = tuple(self._put(name, file, span) for span in pieces(0, size))
        self._whole[name] = (mark, parts)
        return parts

    def _put(self, name: str, file: int, span: range) -> Part:
        content = b"".join(read_at(file, span))
        self._count += 1
        holder = self._grip.manifest.generation
        part = f"{PARTS}/{holder:06d}/{self._count:08d}-{name.replace('/', '-')}"
        self._astray.add(part)
        self._grip.store.put(part, content)
        return Part(part, len(content), hashlib.sha256(content).hexdigest())


def _opened(folder: Path) -> Seen:
    seen: Seen = {}
    for name in files_of(folder):
        with contextlib.suppress(FileNotFoundError):  # it was removed since
            file = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            found = os.fstat(file)
            if stat.S_ISREG(found.st_mode):
                seen[name] = (file, found.st_size)
            else:
                os.close(file)
    return seen


def _marks(seen: Seen) -> dict[str, tuple[int, int]]:
    return {name: (os.fstat(file).st_ino, size) for name, (file, size) in seen.items()}


def _release(seen: Seen) -> None:
    for file, _ in seen.values():
        os.close(file)


def _whole_lines(file: int, size: int) -> int:
    """Bytes of the lines that are finished."""
    end = size
    while end > 0:
        start = max(0, end - (1 << 16))
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
