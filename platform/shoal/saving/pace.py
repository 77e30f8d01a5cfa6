"""At which steps a cell saves. Pure.

By the job's number of steps, or by what saves cost. Then its ranks tell each other at the end of a save what it cost
them, and from that each knows the same next step.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shoal.saving.deadline import steps_until_last
from shoal.saving.interval import Cost, steps_between

__all__ = ["Pace", "agreed"]

LATELY = 9
"""Steps of which the one in the middle says how long a step takes."""
FIRST = 10
"""Steps of a cell that has not saved yet until it does."""


def agreed(words: Sequence[Mapping[str, float]]) -> int:
    """Steps from a save to the next, by what every rank says of it: seconds that were `lost`, until it was `written`,
    of a `step`, and between two failures (`mean`), which all have from the same order."""
    lost, written, step = (max(word[name] for word in words) for name in ("lost", "written", "step"))
    return steps_between(Cost(lost, written), step, words[0]["mean"])


@dataclass
class Pace:
    """Of one cell, the same on each of its ranks but for how long steps took. `every`: as the job has it; 0: the cell
    saves at the end only. `mean`: seconds between two failures of the run."""

    every: int | Literal["auto"]
    mean: float = 0.0
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=LATELY))
    _begun: int = -1
    _first: int = 0
    _next: int | None = None
    _last: int | None = None
    """Where to save once more before a node goes."""
    _heard: bool = True

    def entered(self, steps: int, mean: float) -> None:
        """A generation begins; what was begun in one before counts."""
        self.mean = mean
        if self._begun < 0 and self._next is None:
            self._first, self._next = steps, steps + FIRST

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self._steps.append(seconds)

    def told(self, left: float | None = None) -> dict[str, float] | None:
        """What a rank tells the others of a save, beside what that cost; none if nobody asks. left: seconds until its
        node goes, if nodes of the cell do."""
        if self.every != "auto" and left is None:
            return None
        word = {"step": statistics.median(self._steps) if self._steps else 0.0, "mean": self.mean}
        return word if left is None else {**word, "left": left}

    def began(self, steps: int) -> None:
        """A save begins."""
        self._begun, self._next, self._last, self._heard = steps, None, None, False

    def heard(self, words: Sequence[Mapping[str, float]]) -> None:
        """All ranks know how the last save went: what each says of it, if it is whole and they were asked."""
        if not words or self._heard:
            return
        self._heard = True
        if self.every == "auto":
            self._next = self._begun + agreed(words)
        left = min(word.get("left", math.inf) for word in words)
        written, step = (max(word[name] for word in words) for name in ("written", "step"))
        steps = steps_until_last(left, written, step) if left < math.inf else None
        self._last = None if steps is None else self._begun + steps

    def due(self, steps: int) -> bool:
        """Whether to save after so many committed steps. Not before the last one is whole, or has come to nothing:
        then it is begun anew (`chances`)."""
        if self._last is not None and steps >= self._last:
            return True
        if self.every != "auto":
            since = max(self._begun, self._first)
            return bool(self.every) and steps // self.every > since // self.every
        return self._next is not None and steps >= self._next
