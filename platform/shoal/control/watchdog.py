"""Who has been silent for too long: deadlines learned from the run's own steps and signs of life. Pure; times are fed.

Ray never notices a frozen worker, and a collective only after its timeout. A worker that trains says something every
`Timeouts.beat`; when it has said nothing for three steps (at least `Timeouts.silence`, and three times the longest gap
seen lately, so that a slow machine is not taken for a dead one) it is fenced.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from shoal.timeouts import Timeouts

__all__ = ["Watchdog"]

LEARNED = 5
"""Steps before the run's own step time is believed."""
STEPS = 3
"""Step times of silence."""
STUCK = 10
"""Step times that a worker may compute while others wait for it."""
DECAY = 0.98
"""Of the longest gap between signs of life, a look."""


class Watchdog:
    """Deadlines of one run. All times are monotonic seconds."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._seconds: deque[float] = deque(maxlen=50)
        self._gap = 0.0
        self._looked: float | None = None

    def step(self, seconds: float) -> None:
        """A step took so long."""
        self._seconds.append(seconds)

    def gap(self, seconds: float) -> None:
        """A living worker was silent for so long."""
        self._gap = max(self._gap, seconds)

    def look(self, now: float) -> bool:
        """Call before looking for silent workers. False: the controller itself came late, so that what it has not heard
        proves nothing; all clocks must start anew."""
        late = self._looked is not None and now - self._looked > self._timeouts.silence / 2
        self._looked = now
        self._gap *= DECAY
        return not late

    def silence(self, phase: str) -> float:
        """Seconds that a worker in this phase may be silent."""
        if len(self._seconds) < LEARNED:
            return self._timeouts.patience
        if phase not in ("inside", "across", "spare"):  # imports and libraries may hold the interpreter for a while
            return self._timeouts.patience / 4
        learned = max(self._timeouts.silence, STEPS * median(self._seconds), STEPS * self._gap)
        return min(self._timeouts.patience, learned)

    def stuck(self) -> float:
        """Seconds that a worker may compute on one step, or take to answer a stop, while others wait for it."""
        if len(self._seconds) < LEARNED:
            return self._timeouts.patience
        return min(self._timeouts.patience, max(self._timeouts.patience / 4, STUCK * median(self._seconds)))
