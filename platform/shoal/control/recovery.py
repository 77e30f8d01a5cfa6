"""What each recovery took, phase by phase: values fed with times, so that it is tested without a clock.

detect      last sign of life of the dead -> the controller knows
decide      -> every living worker has answered and the others go on
place       -> the cell's new members are chosen and told
join        -> they stand in a world with a model built, and the cells have stopped at a step boundary for them
state       the copy from the peer cell
first_step  -> the first committed step with the cell back in it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.control.reshaping import Reshaping
from shoal.decisions.actions import Reshaped
from shoal.ladder import LADDER, Rung

__all__ = ["Recoveries", "Recovery"]

GIVES_UP = (Rung.COMBINE, Rung.RECALL, Rung.RESTORE)
"""Without a cell of the new shape there is none; one that is healed or dropped there is another matter."""


@dataclass
class Recovery:
    """One cell's loss and return; times in seconds of one clock."""

    cell: int
    alive: float
    noticed: float
    how: str
    nodes: list[str] = field(default_factory=list)
    actors: list[str] = field(default_factory=list)
    rung: Rung = Rung.HEAL
    reason: str = ""
    lost: int = 0
    decided: float | None = None
    placed: float | None = None
    joined: float | None = None
    state: float = 0.0
    committed: float | None = None
    reported: bool = False

    def record(self, now: float, cells: int, wanted: int) -> dict[str, Any]:
        """The journal's `recovery` event; `now`: time of the step that ends it."""
        decided = self.decided if self.decided is not None else now
        placed = self.placed if self.placed is not None else decided
        joined = self.joined
        phases: dict[str, float | None] = {
            "detect": self.noticed - self.alive,
            "decide": decided - self.noticed,
            "place": max(0.0, placed - decided) if joined is not None else None,
            "join": max(0.0, joined - max(placed, decided)) if joined is not None else None,
            "state": self.state if joined is not None else None,
            "first_step": max(0.0, now - joined - self.state) if joined is not None else None,
        }
        next_commit = (self.committed if self.committed is not None else now) - self.alive
        full = now - self.alive if joined is not None and cells == wanted else None
        return {
            "rung": self.rung,
            "cell": self.cell,
            "nodes": self.nodes,
            "actors": self.actors,
            "reason": self.reason,
            "phases": phases,
            "next_commit": next_commit,
            "full_strength": full,
            "steps_lost": self.lost,
            "sentence": self.sentence(next_commit, full),
        }

    def sentence(self, next_commit: float, full: float | None) -> str:
        who = self.actors[0] if len(self.actors) == 1 else " and ".join(self.nodes)
        what = "died" if self.actors else "will be taken away"
        done = LADDER[self.rung].done.format(cell=self.cell)
        after = f", full strength after {full:.2f} s" if full is not None else ""
        return (
            f"{who} {what} ({self.how}): {done}; next step committed after {next_commit:.2f} s{after}; "
            f"{self.lost} steps lost"
        )


class Recoveries:
    """The open recoveries of a run, by cell."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.open: dict[int, Recovery] = {}
        self.paused = 0.0
        """Unix time at which the run was last paused."""
        self.struck: float | None = None
        """Of those deaths that nothing was committed after by then: the first last sign of life."""
        self.shape: Reshaping | None = None
        """The change of shape that is under way."""
        self.lost = 0
        """Steps that were taken back since the last commit."""

    def died(self, cell: int, actor: str, node: str, how: str, alive: float, now: float) -> None:
        one = self.open.get(cell)
        if one is None or one.reported:
            one = self.open[cell] = Recovery(cell, alive, now, how)
        if not one.actors:
            one.how = how  # it was to leave in order, and died on the way
        one.alive = min(one.alive, alive)
        one.actors.append(actor)
        if node not in one.nodes:
            one.nodes.append(node)

    def leaves(self, cell: int, nodes: list[str], now: float) -> None:
        """A live cell is told to leave nodes that will be taken away."""
        if cell not in self.open:
            self.open[cell] = Recovery(cell, now, now, "it was announced", nodes, rung=Rung.DRAIN)

    def decision(self, rung: Rung, cells: Sequence[int], reason: str) -> None:
        if rung in GIVES_UP:
            self.shape = None  # it did not come about
        for cell in cells:
            if cell in self.open and not self.open[cell].reported:
                self.open[cell].rung, self.open[cell].reason = rung, reason

    def pauses(self, now: float) -> None:
        """The run is told to pause."""
        self.paused = now
        self.struck = min((one.alive for one in self.open.values() if one.actors and not one.reported), default=None)

    def reshaped(self, change: Reshaped, now: float) -> None:
        """The run takes another shape: its cells are others, and none of them is to be healed."""
        if not change.paused:  # nobody trained, so nobody had to be told to pause
            self.pauses(now)
        self.open, self.wanted = {}, change.wanted
        self.shape = Reshaping(change, self.paused, now, self.struck, lost=self.lost)

    def rewound(self, lost: int) -> None:
        self.shape = None
        self.lost += lost
        for one in self.open.values():
            one.lost = lost

    def formed(self, cell: int, now: float) -> None:
        one = self.open.get(cell)
        if one is not None:
            one.placed = now
            if one.decided is None:
                one.decided = now
            if one.rung is Rung.SHRINK:
                one.rung = Rung.GROW

    def generation(self, cells: list[int], now: float) -> None:
        if self.shape is not None:
            self.shape.began = now
        for one in list(self.open.values()):
            if one.cell in cells and one.placed is None and not one.actors:
                del self.open[one.cell]  # it stayed where it was
                continue
            if one.decided is None:
                one.decided = now
            if one.cell in cells and one.placed is not None:
                one.joined = now

    def copied(self, cell: int, seconds: float, size: int = 0) -> None:
        if self.shape is not None:
            self.shape.filled(seconds, size)
        if cell in self.open:
            self.open[cell].state = max(self.open[cell].state, seconds)

    def in_shape(self, now: float) -> dict[str, Any] | None:
        """A step was committed: the record of a change of shape that it ends."""
        done, self.lost = self.shape, 0
        if done is None or done.began is None:
            return None
        self.shape = None
        return done.record(now)

    def step(self, cells: list[int], now: float) -> list[dict[str, Any]]:
        """A step was committed by `cells`: the records of recoveries that it ends."""
        records = []
        for cell, one in list(self.open.items()):
            if one.decided is None:
                continue
            if one.committed is None:
                one.committed = now
            if one.joined is not None and cell in cells:
                records.append(one.record(now, len(cells), self.wanted))
                del self.open[cell]
            elif one.rung is Rung.SHRINK and not one.reported:
                records.append(one.record(now, len(cells), self.wanted))
                one.reported = True
        return records
