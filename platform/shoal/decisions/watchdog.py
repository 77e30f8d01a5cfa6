"""How long a worker may be silent, and a run stand still: deadlines learned from the run's own steps and signs of life.
Pure; times are fed.

Ray never notices a frozen worker, and a collective only after its timeout. A worker that trains says something every
`Timeouts.beat`; when it has said nothing for three steps and `Timeouts.silence` it is fenced. A slow machine is not to
be taken for a dead one: the silence must also be three times the longest gap seen lately, and eight times what most
workers' is just now. Time by which a look comes late counts for no clock: nobody was listened to in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from statistics import median

from shoal.protocol.said import Phase
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


@dataclass
class Watchdog:
    """Deadlines of one run, in seconds. `seconds`: that the last steps took; `gap`: the longest silence lately of a
    worker that lived; `moved`: monotonic time at which a generation or a formation was begun, or a standstill acted
    upon; None until the next look."""

    timeouts: Timeouts
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    gap: float = 0.0
    moved: float | None = None

    def copy(self) -> Watchdog:
        return replace(self, seconds=self.seconds.copy())

    def step(self, seconds: float) -> None:
        """A step took so long."""
        self.seconds.append(seconds)

    def look(self, gap: float) -> None:
        """A look at the workers; `gap`: the longest silence that ended since the last one."""
        self.gap = max(self.gap * DECAY, gap)

    def silence(self, phase: Phase, usual: float = 0.0) -> float:
        """Seconds that a worker in this phase may be silent, when the liveliest quarter was silent for `usual`."""
        if len(self.seconds) < LEARNED:
            return self.timeouts.patience
        learned = self.timeouts.silence + STEPS * median(self.seconds)
        if phase in (Phase.FORMING, Phase.SAVING, Phase.LEAVING):  # libraries may hold the interpreter for a while
            learned = self.timeouts.patience / 4
        learned = max(learned, STEPS * self.gap, USUAL * usual)
        return min(self.timeouts.patience, learned)

    def still(self, phases: Collection[Phase]) -> float:
        """Seconds for which all workers of the run, who are in these phases, may go without a change of phase or step.
        Who computes, saves or loads may take long; who only waits for others of whom nobody does anything may not."""
        times = self.timeouts
        each = {Phase.ACROSS: times.patience, Phase.JOINING: times.start, Phase.EVALUATING: LONG * times.still}
        each[Phase.SAVING] = each[Phase.EVALUATING]
        limit = max(each.get(phase, times.still) for phase in phases)
        return max(limit, STUCK * median(self.seconds)) if self.seconds else limit

    def stuck(self) -> float:
        """Seconds that a worker may compute on one step, or take to answer a stop, while others wait for it."""
        if len(self.seconds) < LEARNED:
            return self.timeouts.patience
        return min(self.timeouts.patience, max(self.timeouts.patience / 4, STUCK * median(self.seconds)))
