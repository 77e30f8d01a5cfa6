"""Who is slow, step after step, while nothing fails. Pure: fed with the seconds that each worker computed.

Inside a cell the fast wait for the slow, so what can be told apart is cells: of a slow one its slowest worker is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Slow", "Stragglers"]

FACTOR = 1.5
"""Times the median cell's seconds a micro-batch."""
STEPS = 20
"""Steps in a row."""


@dataclass(frozen=True)
class Slow:
    """A worker whose cell is slow. Seconds a micro-batch, the cell's and the median cell's."""

    worker: str
    cell: int
    seconds: float
    typical: float


@dataclass
class Stragglers:
    """Counts slow steps in a row, by cell."""

    row: dict[int, int] = field(default_factory=dict)

    def copy(self) -> Stragglers:
        return Stragglers(dict(self.row))

    def step(self, crew: Sequence[str], cells: Sequence[int], seconds: Sequence[float]) -> list[Slow]:
        """A committed step: who has just become a straggler. `seconds`: of each worker of `crew`, for one micro-batch;
        `cells`: of each worker of `crew`."""
        slowest: dict[int, tuple[float, str]] = {}
        for worker, cell, took in zip(crew, cells, seconds, strict=True):
            slowest[cell] = max(slowest.get(cell, (0.0, "")), (took, worker))
        if len(slowest) < 3:  # of two, neither can be called the slow one
            self.row.clear()
            return []
        typical = median(took for took, _ in slowest.values())
        found = []
        for cell, (took, worker) in slowest.items():
            self.row[cell] = self.row.get(cell, 0) + 1 if took > FACTOR * typical else 0
            if self.row[cell] == STEPS:
                found.append(Slow(worker, cell, took, typical))
        return found
