"""Waiting for a folder that may hang: whoever asks a file server that does not answer is stopped, and no signal helps.

What a store waits for is noted, which costs next to nothing; work on it is done in a thread that is left behind when an
answer takes too long.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

__all__ = ["PATIENCE", "Asked"]

PATIENCE = 60.0
"""Seconds for which an answer is waited for: as long as a request to S3 is made again (`s3_calls`)."""
SLOWEST = 10e6
"""Bytes a second below which a disk counts as one that hangs."""


class Asked:
    """What the threads of this process wait for, of one store."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, float]] = {}
        """Of each thread: what it asked for, and when (monotonic) an answer is overdue."""

    @contextlib.contextmanager
    def call(self, where: str, size: int = 0) -> Iterator[None]:
        """While the system is asked for an object, or for `size` bytes of it."""
        me = threading.get_ident()
        before = self._calls.get(me)
        self._calls[me] = (where, time.monotonic() + PATIENCE + size / SLOWEST)
        try:
            yield
        finally:
            if before is None:
                del self._calls[me]
            else:
                self._calls[me] = (before[0], time.monotonic() + PATIENCE)

    def hanging(self) -> str | None:
        """What is asked for in vain."""
        now = time.monotonic()
        return next((where for where, overdue in list(self._calls.values()) if now > overdue), None)
