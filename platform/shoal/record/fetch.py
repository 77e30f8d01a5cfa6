"""Brings a record from a store into a local folder, where every reader of a run directory can read it.

Only what is new is brought, and each file is appended to, or replaced in one move where steps were taken back, as its
writer did it: whoever follows the local files sees what he would have seen there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from shoal.record import grip
from shoal.record.manifest import LARGEST, NAME, Manifest, Part
from shoal.record.stretches import GROWS, Known, files_of, read_at
from shoal_core.errors import UserError
from shoal_core.store import Store, get_small

__all__ = ["Copy", "one_file"]

LOCK = ".fetched"
TRIES = 5
"""Times that a manifest is read anew because what it names was replaced before it could be brought."""


class Copy:
    """The record of a run in the place `store`, as it is in `folder`, which is this copy's alone; processes that bring
    the same at once wait for each other."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._known = Known()
        self.manifest = Manifest()
        """What the folder holds."""

    def bring(self, found: Manifest | None = None) -> bool:
        """Bring the folder up to what the store has now, or to the manifest that was `found` there; whether there is
        a record.

        Raises:
            UserError: it is damaged, or the folder cannot be written. StoreError: it cannot be read.
        """
        for _ in range(TRIES):
            found = found or grip.read(self._store)[0]
            if not found.files:
                return False
            try:
                with self._alone():
                    self._bring(found)
                self.manifest = found
                return True
            except FileNotFoundError as error:
                missing, before, found = error, found, grip.read(self._store)[0]
                if found.writes == before.writes:
                    break
        where = self._store.where(NAME)
        raise UserError(f"{where}: it names an object that is not there ({missing})", "restore it from a copy")

    def close(self) -> None:
        """Release the files."""
        self._known.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = open(self._folder / LOCK, "wb")  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"{self._folder} cannot be written ({error.strerror})", "free its disk, or its rights"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _bring(self, found: Manifest) -> None:
        with contextlib.ExitStack() as stack:
            fresh = {name: self._fresh(stack, name, parts) for name, parts in found.files.items()}
            for name in sorted(fresh, key=lambda name: (name not in files_of(self._folder), name)):
                self._put(name, found.files[name], *fresh[name])
        for name in files_of(self._folder):
            if name not in found.files:
                (self._folder / name).unlink(missing_ok=True)

    def _fresh(self, stack: contextlib.ExitStack, name: str, parts: Sequence[Part]) -> tuple[int, IO[bytes] | None]:
        """From which byte on the local file is to be another, and what comes there; None: nothing, it is as it should
        be."""
        count = done = size = 0
        with contextlib.suppress(FileNotFoundError), open(self._folder / name, "rb") as local:
            count, done = self._known.matching(name, local.fileno(), parts)
            size = os.fstat(local.fileno()).st_size
            if count == len(parts) and size == done:
                return done, None
        fresh = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        fresh.writelines(contents(self._store, parts[count:]))
        fresh.flush()
        return done, fresh

    def _put(self, name: str, parts: Sequence[Part], start: int, fresh: IO[bytes] | None) -> None:
        path = self._folder / name
        if fresh is None:
            return
        size = os.fstat(fresh.fileno()).st_size
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(GROWS) and path.exists():
            with open(path, "r+b") as local:
                rest = os.fstat(local.fileno()).st_size - start
                if rest <= size and _same(local.fileno(), start, fresh.fileno(), rest):
                    os.lseek(local.fileno(), 0, os.SEEK_END)
                    for block in read_at(fresh.fileno(), range(rest, size)):
                        local.write(block)
                    local.flush()
                    self._known.note(name, local.fileno(), parts)
                    return
        temporary = path.with_name(f".{path.name}.fetched.tmp")
        with open(temporary, "wb") as file:
            if start:
                with open(path, "rb") as former:
                    for block in read_at(former.fileno(), range(start)):
                        file.write(block)
            for block in read_at(fresh.fileno(), range(size)):
                file.write(block)
        os.replace(temporary, path)
        with open(path, "rb") as local:
            self._known.note(name, local.fileno(), parts)


def contents(store: Store, parts: Sequence[Part]) -> Iterator[bytes]:
    """What some parts of a file hold.

    Raises:
        FileNotFoundError: one was replaced since. UserError: it is not what was published. StoreError: it cannot be
            read.
    """
    for part in parts:
        content: bytes | None = None
        with contextlib.suppress(ValueError):
            content = get_small(store, part.name, LARGEST)
        if content is None or hashlib.sha256(content).hexdigest() != part.sha256:
            raise UserError(f"{store.where(part.name)} is damaged: it is not what {NAME} says", "restore it")
        yield content


def one_file(store: Store, found: Manifest, name: str) -> bytes | None:
    """One file of a record, and nothing else of it; None if the record has none. found: the manifest there.

    Raises:
        UserError: it is damaged. StoreError: it cannot be read.
    """
    for _ in range(TRIES):
        if name not in found.files:
            return None
        with contextlib.suppress(FileNotFoundError):
            return b"".join(contents(store, found.files[name]))
        found = grip.read(store)[0]
    raise UserError(f"{store.where(NAME)}: it names an object of {name} that is not there", "restore it from a copy")


def _same(one: int, start: int, other: int, size: int) -> bool:
    """Whether `size` bytes of two files are the same, in the first from `start` on."""
    pairs = zip(read_at(one, range(start, start + size)), read_at(other, range(size)), strict=True)
    return all(first == second for first, second in pairs)
