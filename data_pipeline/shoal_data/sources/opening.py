"""Input files as ordinary file objects for reading, wherever they lie, whose errors are StoreErrors."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import Any, BinaryIO, cast

from shoal_core.errors import StoreError
from shoal_data.retry import MayPass, retried
from shoal_data.sources import hub_files, s3_files
from shoal_data.sources.filesystem import is_local, scheme_of
from shoal_data.sources.found import Ranges
from shoal_data.sources.local_files import explained

__all__ = ["StoredFile", "open_file"]


def open_file(path: str, stamp: str = "") -> BinaryIO:
    """A file of `find_files`, for reading at any place; what may pass is asked for again.

    Args:
        path: as it was found.
        stamp: that of the content that is meant, where it is known: an object on S3 is then read on condition that it
            has it, and need not be asked for its size.

    Raises:
        StoreError: it cannot be read; its `read` and `seek` raise the same, also through Arrow's readers.
    """
    if is_local(path):
        ranges = _on_this_machine(path)
    else:
        ranges = s3_files.ranges(path, stamp) if scheme_of(path) == "s3" else hub_files.ranges(path)
    return cast(BinaryIO, StoredFile(path, ranges))


class StoredFile(io.RawIOBase):
    """Reads at any place by asking for ranges, each asked for anew as long as its failure may pass.

    Arrow hands on what `read` raises as it is, so that an error of the store never looks like broken bytes.
    """

    def __init__(self, name: str, ranges: Ranges) -> None:
        """Read the file that messages call `name`."""
        self.name, self.size, self._ranges = name, ranges.size, ranges
        self._place = self._stopped = self._first = 0
        self._held = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self.name}: seek to {base + offset}")
        self._place = base + offset
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """All the bytes asked for, less only at the end of the file.

        Raises:
            StoreError: they were not to be had.
        """
        begin = self._place
        end = self.size if size is None or size < 0 else min(self.size, begin + size)
        if end <= begin:
            return b""
        parts: list[bytes] = []
        if self._first <= begin < self._first + len(self._held):
            parts.append(self._held[begin - self._first : end - self._first])
            begin += len(parts[0])
        if begin < end:
            ahead = self._ranges.ahead if begin == self._stopped else 0
            fetched = self._fetch_all(begin, min(self.size, max(end, begin + ahead)))
            more = len(fetched) > end - begin
            self._first, self._held = begin, fetched if more else b""
            parts.append(fetched[: end - begin] if more else fetched)
        self._place = self._stopped = end
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(memoryview(buffer).cast("B")))
        memoryview(buffer).cast("B")[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._ranges.closes()
        self._held = b""
        super().close()

    def _fetch_all(self, first: int, last: int) -> bytes:
        places = range(first, last, self._ranges.at_once)
        parts = [self._fetch_whole(place, min(last, place + self._ranges.at_once)) for place in places]
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def _fetch_whole(self, first: int, last: int) -> bytes:
        def ask() -> bytes:
            content = self._ranges.fetch(first, last)
            if len(content) != last - first:
                raise MayPass(f"{len(content):,} of {last - first:,} bytes came")
            return content

        return retried(self.name, ask, self._ranges.attempts)


def _on_this_machine(path: str) -> Ranges:
    handles = [retried(path, lambda: _open(path))]

    def fetch(first: int, last: int) -> bytes:
        parts: list[bytes] = []
        try:
            while first < last and (part := os.pread(handles[0], last - first, first)):
                parts.append(part)
                first += len(part)
        except OSError as error:
            if error.errno == errno.ESTALE:  # the server has the file under a new handle
                os.close(handles[0])
                handles[0] = _open(path)
            raise explained(path, error) from error
        if first < last:
            raise StoreError(f"{path}: it became shorter while it was read", "run again when nobody writes to it")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    return Ranges(os.fstat(handles[0]).st_size, fetch, at_once=1 << 40, closes=lambda: os.close(handles[0]))


def _open(path: str) -> int:
    try:
        # Without waiting for a writer, should the file have become a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise explained(path, error) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise StoreError(f"{path}: it is no regular file", "choose a new --out and run again")
    return handle
