"""What ends this process when nothing else can: a device that is stuck though all that runs on it was aborted."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["LastResort"]

logger = logging.getLogger(__name__)
STUCK = 4
"""The exit code."""


class LastResort:
    """`seconds`: how long what is to come to its end may take (`Timeouts.abort`)."""

    def __init__(self, seconds: float, end: Callable[[str], None] | None = None) -> None:
        self._seconds, self._end = seconds, end or exit_process

    def begin(self, what: str) -> Callable[[], None]:
        """The process ends unless the function that is returned is called in time. Any thread may."""
        timer = threading.Timer(self._seconds, self._end, [what])
        timer.daemon = True
        timer.name = "last-resort"
        timer.start()
        return timer.cancel

    @contextmanager
    def within(self, what: str) -> Iterator[None]:
        """The process ends unless the body does in time."""
        done = self.begin(what)
        try:
            yield
        finally:
            done()


def exit_process(what: str) -> None:
    """The controller sees the lifeline close, and heals."""
    logger.error("%s did not come to its end: this process ends", what)
    os._exit(STUCK)
