"""Simulated time: what is to happen, in its order."""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["Clock"]


class Clock:
    """`now`: seconds since the run began."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0

    def at(self, time: float, act: Callable[[], None]) -> None:
        """What is due at the same time happens in the order in which it was said."""
        self._serial += 1
        heapq.heappush(self._queue, (time, self._serial, act))

    def tick(self, end: float) -> bool:
        """Do what is next, if it is due by `end`; whether there was anything."""
        if not self._queue or self._queue[0][0] > end:
            return False
        self.now, _, act = heapq.heappop(self._queue)
        act()
        return True
