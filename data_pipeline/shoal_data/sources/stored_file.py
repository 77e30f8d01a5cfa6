"""A file in a store, local disk included, as an ordinary file object for reading, whose errors are StoreErrors."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from shoal_data.retry import ATTEMPTS, MayPass, retried

__all__ = ["StoredFile"]

#: bytes of a store: (first, last) -> those between; raises MayPass or what is to go on
Fetch = Callable[[int, int], bytes]


class StoredFile(io.RawIOBase):
    """Reads at any place by asking for ranges, each asked for anew as long as its failure may pass.

    Arrow hands on what `read` raises as it is, so that an error of the store never looks like broken bytes.

    Args:
        name: for messages.
        size: in bytes.
        fetch: gives a range.
        at_once: bytes asked for in one go at most.
        ahead: bytes asked for at least where reading goes on where it stopped.
        attempts: how often a range is asked for.
        closes: called when the file is closed.
    """

    def __init__(
        self,
        name: str,
        size: int,
        fetch: Fetch,
        at_once: int = 64 << 20,
        ahead: int = 0,
        attempts: int = ATTEMPTS,
        closes: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.size = name, size
        self._fetch, self._at_once, self._ahead, self._attempts = fetch, at_once, ahead, attempts
        self._closes = closes
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
            ahead = self._ahead if begin == self._stopped else 0
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
        if not self.closed and self._closes:
            self._closes()
        self._held = b""
        super().close()

    def _fetch_all(self, first: int, last: int) -> bytes:
        places = range(first, last, self._at_once)
        parts = [self._fetch_whole(place, min(last, place + self._at_once)) for place in places]
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def _fetch_whole(self, first: int, last: int) -> bytes:
        def ask() -> bytes:
            content = self._fetch(first, last)
            if len(content) != last - first:
                raise MayPass(f"{len(content):,} of {last - first:,} bytes came")
            return content

        return retried(self.name, ask, self._attempts)
