"""How often to copy the state into memory: as often as takes no more than a part of the steps' time. Pure.

All workers copy at the same steps, so they have to agree on how often. What a copy costs is measured anew in every
generation: the second copy is timed, then a step without one, and at the step after that each worker says in the vote
what part of a step it was. Who commits that step late has not heard it; its generation is over then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["MOST", "Rhythm", "copies_every"]

SHARE = 0.02
"""Part of the time of steps that copies may take."""
MOST = 1000
"""Steps after which a copy is made, however dear it is."""
TIMED, TOLD = 1, 3
"""Steps after a generation's beginning: the copy that is timed; the vote that tells what it cost."""


def copies_every(part: float, share: float = SHARE) -> int:
    """Steps between two copies, each of which stops training for `part` of a step.

    >>> copies_every(0.01), copies_every(0.2), copies_every(1e9)
    (1, 10, 1000)
    """
    return min(max(1, math.ceil(part / share)), MOST) if math.isfinite(part) else MOST


@dataclass
class Rhythm:
    """Of one worker. `every`: as the job has it. `part`: what the copy took of a step here, once it is known."""

    every: int | Literal["auto"]
    part: float = math.nan
    _start: int = -1
    _agreed: int | None = None
    _cost: float = math.nan

    def began(self, steps: int) -> None:
        """A generation begins at so many committed steps; all copy there."""
        self._start, self._agreed, self._cost, self.part = steps, None, math.nan, math.nan

    def copied(self, steps: int, seconds: float) -> None:
        """The copy after `steps` took `seconds`: what hides behind the next step counts too."""
        if self.times(steps):
            self._cost = seconds

    def times(self, steps: int) -> bool:
        """Whether the copy after `steps` is the one that is timed."""
        return self.every == "auto" and steps == self._start + TIMED

    def stepped(self, steps: int, seconds: float) -> None:
        """A step took `seconds` with what came before it; `steps` are committed now."""
        if steps == self._start + TOLD:
            self.part = self._cost / max(seconds, 1e-9)

    def asks(self, steps: int) -> bool:
        """Whether the vote that follows upon `steps` committed ones tells what copies cost."""
        return self.every == "auto" and steps == self._start + TOLD

    def heard(self, parts: Iterable[float]) -> None:
        """What a copy takes of a step, by every worker; who could not time it says NaN, and copies are rare."""
        told = list(parts)
        if told:
            self._agreed = copies_every(max(told) if not any(map(math.isnan, told)) else math.nan)

    def due(self, steps: int) -> bool:
        """Whether to copy after so many committed steps."""
        if self.every != "auto":
            return bool(self.every) and steps % self.every == 0
        since = steps - self._start
        return since == TIMED if self._agreed is None else since % self._agreed == 0
