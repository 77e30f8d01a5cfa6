"""Where a worker stands: in its cell, and among those of a generation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Member", "Standing"]


@dataclass(frozen=True)
class Member:
    """This worker's place: its cell, its rank in it and the cell's size."""

    cell: int
    rank: int
    size: int


@dataclass(frozen=True)
class Standing:
    """Where a member stands in a generation. `cells`: those that train together; `crew`: everybody by cell and rank, if
    samples are audited; `attempts`: which of its formations each cell is; `draw`: see `orders.Generation`."""

    member: Member
    cells: tuple[int, ...] = ()
    crew: tuple[str, ...] = ()
    attempts: tuple[int, ...] = ()
    draw: str = ""

    @property
    def in_first_cell(self) -> bool:
        return self.member.cell == self.cells[0]

    @property
    def place(self) -> int:
        """Of the cell among all."""
        return self.cells.index(self.member.cell)

    @property
    def formed(self) -> tuple[tuple[int, int], ...]:
        """The cells, each with which of its formations it is."""
        return tuple(zip(self.cells, self.attempts, strict=True))

    @property
    def index(self) -> int:
        """Of this worker among all."""
        return self.place * self.member.size + self.member.rank

    @property
    def count(self) -> int:
        """Of all workers."""
        return len(self.cells) * self.member.size
