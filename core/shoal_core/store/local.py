"""A store in a folder of this machine, or of a file system that machines share.

Objects are files. One that is being written lies beside its place under a name that begins with a dot and ends in
`.tmp`. `create` links the finished file into its place, which one of several machines can do on any POSIX file
system, NFS among them. `swap` holds a POSIX lock on a file beside the object; such locks hold between machines on
NFS, Lustre (mounted with `flock`) and their like, and end with their holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shoal_core.files import TEMPORARY
from shoal_core.store.base import Entry, Stat, checked_name
from shoal_core.store.local_errors import explained, vanished
from shoal_core.store.local_files import opened, status, version_of
from shoal_core.store.local_writer import LocalWriter
from shoal_core.store.patience import Asked

__all__ = ["LocalStore"]

_LOCK = ".lock"
#: POSIX locks belong to a process: its threads keep each other out by this
_swapping = threading.Lock()


class LocalStore:
    """The objects under a folder, which need not be there yet. Links to folders in it are not listed.

    Args:
        address: as the user wrote it.
        root: the folder, from the root of the file system.
        within: a folder at or above that, which must be there: without it nothing is made anew, or believed missing.

    Attributes:
        asked: what it waits for, for `patiently`.
    """

    conditional = True

    def __init__(self, address: str, root: Path, within: Path | None = None) -> None:
        self.address, self._root, self._within = address, root, within
        self.asked = Asked()

    def where(self, name: str) -> str:
        return f"{self.address.rstrip('/')}/{name}"

    def put(self, name: str, content: bytes | memoryview) -> None:
        with self.writer(name) as writer:
            writer.write(content)

    def create(self, name: str, content: bytes | memoryview) -> bool:
        writer = self.writer(name)
        try:
            writer.write(content)
            return writer.link()
        finally:
            writer.abort()

    def swap(self, name: str, content: bytes | memoryview, version: str | None) -> str | None:
        if version is None:
            return self.stat(name).version if self.create(name, content) else None
        path = self._path(name)
        with self._locked(name):
            try:
                found = status(path)
            except FileNotFoundError:
                return None
            if version_of(found) != version:
                return None
            with self.writer(name) as writer:
                writer.write(content)
                return writer.replace(after=found.st_mtime_ns)

    def get(self, name: str, span: range | None = None) -> bytes:
        with self._reading(name) as file:
            if span is None:
                span = range(os.fstat(file).st_size)
            content = bytearray(len(span))
            self._fill(name, file, span.start, memoryview(content))
        return bytes(content)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        with self._reading(name) as file:
            self._fill(name, file, offset, buffer.cast("B"))

    def stat(self, name: str) -> Stat:
        with self._explained(name):
            found = status(self._path(name))
        return Stat(found.st_size, version_of(found), found.st_mtime)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder, _, start = prefix.rpartition("/")
        base = self._root / folder if folder else self._root
        with self._explained(prefix):
            vanished(self._within)
            for path, names, files in os.walk(base, onerror=_unless_gone):
                if Path(path) == base:
                    names[:] = [name for name in names if name.startswith(start)]
                    files = [name for name in files if name.startswith(start)]
                for name in files:
                    if not _is_own(name) and (entry := self._entry(Path(path, name))):
                        yield entry

    def folders(self, within: str = "") -> Sequence[str]:
        with self._explained(within, missing_is_empty=True), os.scandir(self._root / within) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return ()

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            path = self._path(name)
            with self._explained(name, missing_is_empty=True):
                if _lock_path(path).exists():
                    with self._locked(name) as lock:
                        path.unlink(missing_ok=True)
                        lock.unlink()
                else:
                    path.unlink()
            self._remove_empty(path.parent)

    def drop_unfinished(self, folder: str) -> int:
        base, count = self._path(folder) if folder else self._root, 0
        with self._explained(folder, missing_is_empty=True):
            for path, _, files in os.walk(base, topdown=False, onerror=_unless_gone):
                left = [Path(path, name) for name in files if name.startswith(".") and name.endswith(TEMPORARY)]
                for file in left:
                    file.unlink(missing_ok=True)
                count += len(left)
                if left:
                    self._remove_empty(Path(path))
        return count

    def writer(self, name: str) -> LocalWriter:
        vanished(self._within)
        return LocalWriter(self._path(name), self.where(name), self._within, self.asked)

    def _path(self, name: str) -> Path:
        return self._root / checked_name(name)

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder of the store, and those above it, as far as nothing lies in them."""
        with contextlib.suppress(OSError):  # not empty, or not ours to remove
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent

    def _entry(self, path: Path) -> Entry | None:
        """Of a file that was found in a folder; None if it is gone by now, or no regular one."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return Entry(path.relative_to(self._root).as_posix(), found.st_size, found.st_mtime)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[int]:
        with self._explained(name):
            file = opened(self._path(name))
            try:
                yield file
            finally:
                os.close(file)

    def _fill(self, name: str, file: int, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            with self.asked.call(self.where(name), len(buffer) - done):
                count = os.preadv(file, [buffer[done:]], offset + done)
            if not count:
                raise EOFError(f"{self.where(name)}: it ends at byte {offset + done}, before {offset + len(buffer)}")
            done += count

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[Path]:
        """Keep all others from swapping or deleting an object; the path of the lock's file."""
        path = _lock_path(self._path(name))
        with self._explained(name), _swapping:
            vanished(self._within)
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX)
                    if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                        yield path
                        return
                finally:  # its last holder removed it meanwhile, or all is done
                    os.close(file)

    @contextlib.contextmanager
    def _explained(self, name: str, *, missing_is_empty: bool = False) -> Iterator[None]:
        """The system's errors as the store's."""
        try:
            with self.asked.call(self.where(name)):
                yield
        except OSError as error:
            vanished(self._within)
            if missing_is_empty and isinstance(error, FileNotFoundError | NotADirectoryError):
                return
            raise explained(error, self.where(name)) from error


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}{_LOCK}")


def _is_own(name: str) -> bool:
    """Whether a file is the store's own: being written, or a lock."""
    return name.startswith(".") and name.endswith((TEMPORARY, _LOCK))


def _unless_gone(error: OSError) -> None:
    """A folder that was removed while it was listed has nothing in it."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
