"""A file that becomes an object when it is whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
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
        self._size = 0
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
        self._file = -1
        with self._failing():
            self._file = self._made()

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content).cast("B")
        with self._failing():
            while view:
                with self._asked.call(self._where, len(view)):
                    count = os.write(self._file, view)
                view = view[count:]
                self._size += count

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
            mark = version_of(os.fstat(self._file))
            os.replace(self._temporary, self._path)
            self._done()
        return mark

    def link(self) -> bool:
        """Put the file in its place if nothing is there; whether it is there now. `abort` must follow."""
        with self._failing():
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
