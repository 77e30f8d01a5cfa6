"""Who has been silent for too long: deadlines learned from the run's own steps and signs of life. Pure; times are fed.

Ray never notices a frozen worker, and a collective only after its timeout. A worker that trains says something every
`Timeouts.beat`; when it has said nothing for three steps and `Timeouts.silence` it is fenced. A slow machine is not to
be taken for a dead one: the silence must also be three times the longest gap seen lately, and eight times what most
workers' is just now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from statistics import median

from shoal.timeouts import Timeouts

__all__ = ["Watchdog"]

LEARNED = 5
"""Steps before the run's own step time is believed."""
STEPS = 3
"""Step times of silence."""
STUCK = 10
"""Step times that a worker may compute while others wait for it."""
LONG = 10
"""Times `Timeouts.still` that all workers may evaluate or save: what they do then has no usual time."""
USUAL = 8
"""Times the silence that three quarters of the workers exceed just now."""
DECAY = 0.998
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

    def look(self, now: float) -> float:
        """Call before looking for silent workers: the seconds by which the controller itself came late. What it has not
        heard in them proves nothing, so they count for no clock."""
        late = 0.0 if self._looked is None else max(0.0, now - self._looked - self._timeouts.look)
        self._looked = now
        self._gap *= DECAY
        return late

    def silence(self, phase: str, usual: float = 0.0) -> float:
        """Seconds that a worker in this phase may be silent, when the liveliest quarter was silent for `usual`."""
        if len(self._seconds) < LEARNED:
            return self._timeouts.patience
        learned = self._timeouts.silence + STEPS * median(self._seconds)
        if phase in ("forming", "saving"):  # imports and libraries may hold the interpreter for a while
            learned = self._timeouts.patience / 4
        learned = max(learned, STEPS * self._gap, USUAL * usual)
        return min(self._timeouts.patience, learned)

    def still(self, phases: Collection[str]) -> float:
        """Seconds for which all workers of the run, who are in these phases, may go without a change of phase or step.
        Who computes, saves or loads may take long; who only waits for others of whom nobody does anything may not."""
        times = self._timeouts
        each = {"across": times.patience, "joining": times.start, "evaluating": LONG * times.still}
        each["saving"] = each["evaluating"]
        limit = max(each.get(phase, times.still) for phase in phases)
        return max(limit, STUCK * median(self._seconds)) if self._seconds else limit

    def stuck(self) -> float:
        """Seconds that a worker may compute on one step, or take to answer a stop, while others wait for it."""
        if len(self._seconds) < LEARNED:
            return self._timeouts.patience
        return min(self._timeouts.patience, max(self._timeouts.patience / 4, STUCK * median(self._seconds)))
