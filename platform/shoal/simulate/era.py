"""A generation as it is simulated: when its steps commit, and what each cell has done of the pending one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.decisions.actions import Generation

__all__ = ["Era"]


@dataclass
class Era:
    """A generation as it runs. `began`: time its first micro-batch starts; `first`, `each`: seconds of its first step
    and of those after; `before`, `dealt`: micro-batches of the first step that each cell had done when it began, and
    will have done; `share`: of the steps after."""

    generation: int
    cells: tuple[int, ...]
    steps: int
    began: float
    first: float
    each: float
    before: dict[int, tuple[int, ...]]
    dealt: dict[int, tuple[int, ...]]
    share: dict[int, tuple[int, ...]]
    unhealed: frozenset[int] = frozenset()
    struck: float | None = None
    """Since when a member is dead: nothing commits any more."""
    booked: int = 0
    answered: dict[int, bool] = field(default_factory=dict)
    """Cells whose answer is on its way, and whether as a broken one."""

    def commits(self, now: float) -> int:
        """Steps committed by `now`."""
        until = (now if self.struck is None else min(now, self.struck)) - self.began
        return 0 if until < self.first else 1 + int((until - self.first) / self.each)

    def pending(self, cell: int) -> tuple[int, ...]:
        """What a cell will have done of the pending step once its sums are complete."""
        return self.share[cell] if self.booked else self.dealt[cell]

    def time_of(self, commits: int) -> float:
        return self.began + self.first + (commits - 1) * self.each

    def ready(
        self, cell: int, now: float, lasts: Callable[[dict[int, tuple[int, ...]]], float], across: float
    ) -> tuple[float, int, tuple[int, ...]]:
        """When a cell that is stopped `now` has finished the sums it is in; its steps (-1: it has no state), and what
        it will have done of the pending one. `lasts`: seconds of a step in which each cell has these micro-batches to
        do, `across` of which cross cells."""
        steps, before = self.steps + self.booked, self.before.get(cell, ())
        if now < self.began:
            return now, -1 if cell in self.unhealed else steps, before
        done = self.pending(cell)
        fresh = done if self.booked else done[len(before) :]
        start = self.time_of(self.booked) if self.booked else self.began
        return max(now, start + lasts({cell: fresh}) - across), steps, done

    def kept(self, action: Generation) -> dict[int, tuple[int, ...]]:
        """What the cells of the next generation have done of its first step already, and need not do again."""
        healed = {target for _, target in action.heals}
        taken = {m for cell in action.cells for m in action.todo[cell]}
        return {
            cell: tuple(m for m in self.pending(cell) if m not in taken)
            for cell in action.cells
            if cell in self.dealt and cell not in healed and action.steps == self.steps + self.booked
        }
