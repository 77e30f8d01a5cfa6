"""Where the time went: every second of a simulated run is a useful step's, or lost to a phase of a cause's recovery."""

from __future__ import annotations

from collections import defaultdict

__all__ = ["PHASES", "Ledger"]

PHASES = ("stopped", "regroup", "copy", "restore", "fewer", "redone")
"""stopped: noticing, answering, and work of the pending step that had to be done again · regroup: new groups · copy:
state to a healed cell · restore: loading a checkpoint · fewer: longer steps · redone: steps undone."""


class Ledger:
    """Seconds, booked commit by commit. `step`: of a step at full strength."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.last = 0.0
        """Time of the last commit."""
        self.useful = 0
        self.lost: defaultdict[tuple[str, str], float] = defaultdict(float)
        """By (cause, phase)."""
        self.interruptions = 0
        self._open: list[str] = []
        self._known: defaultdict[str, float] = defaultdict(float)

    def interrupted(self, cause: str) -> None:
        """The pending step will not commit as it is."""
        self.interruptions += not self._open
        self._open.append(cause)

    def spend(self, phase: str, seconds: float) -> None:
        """Part of the interruption whose length is known."""
        self._known[phase] += seconds

    def commits(self, count: int, first: float, each: float, missing: str | None) -> None:
        """`count` steps were committed, the first at time `first`, then one every `each` seconds; `missing`: why there
        were fewer cells, if there were."""
        if not count:
            return
        cause = self._open[0] if self._open else missing or "none"
        excess = first - self.last - self.step
        for phase, seconds in self._known.items():
            self.lost[cause, phase] += seconds
        rest = "stopped" if self._open else "fewer"
        self.lost[cause, rest] += excess - sum(self._known.values())
        self._open.clear()
        self._known.clear()
        if missing is not None:
            self.lost[missing, "fewer"] += (count - 1) * (each - self.step)
        self.last = first + (count - 1) * each
        self.useful += count

    def undone(self, steps: int) -> None:
        cause = self._open[0] if self._open else "none"
        self.useful -= steps
        self.lost[cause, "redone"] += steps * self.step
