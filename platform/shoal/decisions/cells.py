"""Cells: who sits in each, and how far its formation is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Cell", "Cells", "Formation"]

Formation = Literal["empty", "forming", "ready", "live"]


@dataclass(frozen=True)
class Cell:
    """One replica: its members by rank (None: the seat is empty) and how far it is.

    `attempt` counts formations: the name of a cell's world, so that nobody meets in a broken one; `named`: the newest
    attempt that was given to the cell or to a successor of it; `ready`: members that stand in the world.
    """

    members: tuple[str | None, ...]
    phase: Formation = "empty"
    attempt: int = 0
    named: int = 0
    ready: frozenset[str] = frozenset()

    def people(self) -> list[str]:
        """The members that there are, by rank."""
        return [m for m in self.members if m is not None]

    def with_ready(self, worker: str) -> Cell:
        """This cell when `worker` has said that it stands in its world."""
        there = self.ready | {worker}
        return replace(self, ready=there, phase="ready" if len(there) == len(self.members) else "forming")


class Cells:
    """The cells of a run by index, and the indices of those in each phase, so that nobody has to look through all."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._cells = list(cells)
        self._found: dict[Formation, set[int]] = {"empty": set(), "forming": set(), "ready": set(), "live": set()}
        for index, cell in enumerate(self._cells):
            self._found[cell.phase].add(index)

    def __getitem__(self, index: int) -> Cell:
        return self._cells[index]

    def __setitem__(self, index: int, cell: Cell) -> None:
        self._found[self._cells[index].phase].discard(index)
        self._found[cell.phase].add(index)
        self._cells[index] = cell

    def __len__(self) -> int:
        return len(self._cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cells) and self._cells == other._cells

    __hash__ = None  # type: ignore[assignment]

    def within(self, phase: Formation) -> list[int]:
        """The cells in a phase, in order."""
        return sorted(self._found[phase])

    def any(self, phase: Formation) -> bool:
        """Whether a cell is in a phase."""
        return bool(self._found[phase])

    def copy(self) -> Cells:
        """As many cells of one's own."""
        return Cells(self._cells)
