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
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shoal_core.errors import StoreError
from shoal_core.files import TEMPORARY
from shoal_core.store.base import Entry, Stat, Writer, checked_name
from shoal_core.store.local_errors import explained

__all__ = ["LocalStore"]

_LOCK = ".lock"
#: how often a folder is made anew that another removes as empty at that moment
_ATTEMPTS = 20
#: POSIX locks belong to a process: its threads keep each other out by this
_swapping = threading.Lock()


class LocalStore:
    """The objects under a folder, which need not be there yet. Links to folders in it are not listed.

    Args:
        address: as the user wrote it.
        root: the folder, from the root of the file system.
    """

    conditional = True

    def __init__(self, address: str, root: Path) -> None:
        self.address, self._root = address, root

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
                found = _status(path)
            except FileNotFoundError:
                return None
            if _version(found) != version:
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
            found = _status(self._path(name))
        return Stat(found.st_size, _version(found), found.st_mtime)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder, _, start = prefix.rpartition("/")
        base = self._root / folder if folder else self._root
        with self._explained(prefix):
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
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty, or not ours to remove
                for folder in path.relative_to(self._root).parents[:-1]:
                    (self._root / folder).rmdir()

    def writer(self, name: str) -> LocalWriter:
        return LocalWriter(self._path(name), self.where(name))

    def _path(self, name: str) -> Path:
        return self._root / checked_name(name)

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
            file = _opened(self._path(name))
            try:
                yield file
            finally:
                os.close(file)

    def _fill(self, name: str, file: int, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            if not (count := os.preadv(file, [buffer[done:]], offset + done)):
                raise EOFError(f"{self.where(name)}: it ends at byte {offset + done}, before {offset + len(buffer)}")
            done += count

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[Path]:
        """Keep all others from swapping or deleting an object; the path of the lock's file."""
        path = _lock_path(self._path(name))
        with self._explained(name), _swapping:
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
            yield
        except OSError as error:
            if missing_is_empty and isinstance(error, FileNotFoundError | NotADirectoryError):
                return
            raise explained(error, self.where(name)) from error


class LocalWriter(Writer):
    """A file that is being written beside its place.

    Args:
        path: where it belongs; folders on the way there are made.
        where: its address, for messages.

    Raises:
        StoreError: it cannot be made.
    """

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
        self._file = -1
        with self._failing():
            self._file = self._made()

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content).cast("B")
        with self._failing():
            while view:
                view = view[os.write(self._file, view) :]

    def close(self) -> None:
        if self._file >= 0:
            self.replace()

    def replace(self, after: int = 0) -> str:
        """`close`; the version of the file that is now there. Its time is later than `after` (ns)."""
        with self._failing():
            if after:
                now = max(time.time_ns(), after + 1)
                os.utime(self._file, ns=(now, now))
            os.fsync(self._file)
            version = _version(os.fstat(self._file))
            os.replace(self._temporary, self._path)
            self._done()
        return version

    def link(self) -> bool:
        """Put the file in its place if nothing is there; whether it is there now. `abort` must follow."""
        with self._failing():
            os.fsync(self._file)
            try:
                os.link(self._temporary, self._path)
            except FileExistsError:
                # A network file system may have linked it, lost the answer and been asked again: look whose it is.
                with contextlib.suppress(FileNotFoundError):
                    return os.path.samestat(_status(self._path), os.fstat(self._file))
                return False
            return True

    def abort(self) -> None:
        if self._file >= 0:
            self._done()
            with contextlib.suppress(OSError):  # a disk that takes no writes may not take this one either
                self._temporary.unlink(missing_ok=True)

    def _made(self) -> int:
        for _ in range(_ATTEMPTS):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another removed the folder, which was empty
                return os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        raise StoreError(f"{self._where}: its folder is removed again and again", "see who deletes there")

    def _done(self) -> None:
        file, self._file = self._file, -1
        os.close(file)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Nothing is left of a file that could not be written, and the system's errors are the store's."""
        try:
            yield
        except OSError as error:
            self.abort()
            raise explained(error, self._where) from error


def _opened(path: Path) -> int:
    """A file opened for reading. What is no regular file is no object, and nothing lies under a file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its writer
    except NotADirectoryError as error:
        raise FileNotFoundError(path) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(path)
    return file


def _status(path: Path) -> os.stat_result:
    """What is known of a file, opened for it: a network file system then asks for the newest."""
    file = _opened(path)
    try:
        return os.fstat(file)
    finally:
        os.close(file)


def _version(found: os.stat_result) -> str:
    return f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}{_LOCK}")


def _is_own(name: str) -> bool:
    """Whether a file is the store's own: being written, or a lock."""
    return name.startswith(".") and name.endswith((TEMPORARY, _LOCK))


def _unless_gone(error: OSError) -> None:
    """A folder that was removed while it was listed has nothing in it."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
