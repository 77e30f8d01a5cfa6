"""A file that becomes an object when it is whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from shoal_core.errors import StoreError
from shoal_core.files import TEMPORARY
from shoal_core.store.base import Writer
from shoal_core.store.local_errors import explained, vanished
from shoal_core.store.local_files import status, version_of
from shoal_core.store.patience import Asked

__all__ = ["LocalWriter"]

#: how often a folder is made anew that another removes as empty at that moment
_ATTEMPTS = 20
#: buffers that a system writes in one call
_AT_ONCE = 1024
#: bytes of a file after which they begin to be brought to the disk, so that little is left to do at its end
_FLUSHED = 1 << 26
_flushers = ThreadPoolExecutor(8, thread_name_prefix="store-flush")


class LocalWriter(Writer):
    """A file that is being written beside its place.

    Args:
        path: where it belongs; folders on the way there are made.
        where: its address, for messages.
        within: a folder on the way there that is not made.
        asked: of its store.

    Raises:
        StoreError: it cannot be made.
    """

    def __init__(self, path: Path, where: str, within: Path | None, asked: Asked) -> None:
        self._path, self._where, self._within, self._asked = path, where, within, asked
        self._size = self._fresh = 0
        self._flushing: Future[None] | None = None
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
        self._file = -1
        with self._failing():
            self._file = self._made()

    def write(self, content: bytes | memoryview) -> None:
        self.write_all([memoryview(content)])

    def write_all(self, contents: Sequence[memoryview]) -> None:
        views = [content.cast("B") for content in contents if content.nbytes]
        with self._failing():
            while views:
                some = views[:_AT_ONCE]
                with self._asked.call(self._where, sum(map(len, some))):
                    count = os.writev(self._file, some)
                self._size += count
                self._fresh += count
                while views and count >= len(views[0]):
                    count -= len(views.pop(0))
                if count:
                    views[0] = views[0][count:]
            if self._fresh >= _FLUSHED and (self._flushing is None or self._flushing.done()):
                self._flushed()
                self._flushing, self._fresh = _flushers.submit(os.fdatasync, self._file), 0

    def close(self) -> None:
        if self._file >= 0:
            self.replace()

    def replace(self, after: int = 0) -> str:
        """`close`; the version of the file that is now there. Its time is later than `after` (ns)."""
        with self._failing():
            if after:
                now = max(time.time_ns(), after + 1)
                os.utime(self._file, ns=(now, now))
            self._flushed()
            os.fsync(self._file)
            mark = version_of(os.fstat(self._file))
            os.replace(self._temporary, self._path)
            self._done()
        return mark

    def link(self) -> bool:
        """Put the file in its place if nothing is there; whether it is there now. `abort` must follow."""
        with self._failing():
            self._flushed()
            os.fsync(self._file)
            try:
                os.link(self._temporary, self._path)
            except FileExistsError:
                # A network file system may have linked it, lost the answer and been asked again: look whose it is.
                with contextlib.suppress(FileNotFoundError):
                    return os.path.samestat(status(self._path), os.fstat(self._file))
                return False
            return True

    def abort(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):  # a disk that takes no writes may not take this one either
                self._done()
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _made(self) -> int:
        for _ in range(_ATTEMPTS):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another removed the folder, which was empty
                return os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        raise StoreError(f"{self._where}: its folder is removed again and again", "see who deletes there")

    def _flushed(self) -> None:
        """Wait until nothing is brought to the disk beside this thread. Raises: what was met at that."""
        flushing, self._flushing = self._flushing, None
        if flushing is not None:
            flushing.result()

    def _done(self) -> None:
        file, self._file = self._file, -1
        try:
            self._flushed()
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Nothing is left of a file that could not be written, and the system's errors are the store's."""
        try:
            with self._asked.call(self._where, self._size):
                yield
        except OSError as error:
            self.abort()
            vanished(self._within)
            if isinstance(error, FileNotFoundError):
                raise StoreError(
                    f"{self._where}: what was written of it was removed", "see who deletes there"
                ) from error
            raise explained(error, self._where) from error
