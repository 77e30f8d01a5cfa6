"""What the controller knows: values only, no Ray, no sockets, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from shoal.plan import NOWHERE, Mesh, Seat, Site
from shoal.protocol.said import Ack

__all__ = ["Cell", "Phase", "Shape", "State", "Worker"]

Phase = Literal["empty", "forming", "ready", "live"]
Mode = Literal["gathering", "running", "draining", "ended"]


@dataclass(frozen=True)
class Shape:
    """What a run is asked to be."""

    cells: int
    workers: int
    steps: int
    micro_batches: Callable[[int], int]
    """Micro-batches of a step, all cells together."""
    recall: bool = False
    """Snapshots are copied to other nodes."""
    axes: Mesh | None = None
    """Stages and expert groups of a cell; by default it is one group."""
    site: Callable[[str], Site] = lambda node: NOWHERE
    """Where a node stands."""

    @property
    def mesh(self) -> Mesh:
        return self.axes or Mesh(ep=self.workers)


@dataclass(frozen=True)
class Worker:
    """A living, warm worker. `home`: the seat it was started for, if any."""

    node: str
    home: Seat | None = None


@dataclass(frozen=True)
class Cell:
    """One replica: who sits in it and how far it is.

    `attempt` counts formations: the name of a cell's world, so that nobody meets in a broken one; `named`: the newest
    attempt that was given to the cell or to a successor of it.
    """

    members: tuple[str | None, ...]
    phase: Phase = "empty"
    attempt: int = 0
    named: int = 0
    ready: frozenset[str] = frozenset()
    rung: str = "start"

    def people(self) -> list[str]:
        return [m for m in self.members if m is not None]

    def with_ready(self, worker: str) -> Cell:
        """This cell when `worker` has said that it stands in its world."""
        there = self.ready | {worker}
        return replace(self, ready=there, phase="ready" if len(there) == len(self.members) else "forming")


@dataclass
class State:
    """The run as the controller sees it."""

    shape: Shape
    expected: frozenset[str] = frozenset()
    """Workers that were asked for and have not said a word yet, each for its home seat."""
    homes: Mapping[Seat, str] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    seats: dict[str, Seat] = field(default_factory=dict)
    """Of every worker that sits in a cell."""
    cells: list[Cell] = field(default_factory=list)
    mode: Mode = "gathering"
    generation: int = -1
    live: tuple[int, ...] = ()
    broken: frozenset[int] = frozenset()
    leaving: frozenset[int] = frozenset()
    """Live cells that end in order with this generation: a successor takes over, or they are formed again elsewhere."""
    successors: dict[int, Cell] = field(default_factory=dict)
    """Cells formed on spares beside the live ones that they are to take the place of, whose nodes go."""
    pausing: bool = False
    """This drain is a pause at a step boundary that nobody has cut short."""
    acks: dict[str, Ack] = field(default_factory=dict)
    awaited: set[str] = field(default_factory=set)
    """Living workers of the generation whose valid answer to the stop is still to come."""
    finished: set[str] = field(default_factory=set)
    tainted: set[str] = field(default_factory=set)
    """Workers whose state is not to be trusted, until they are healed."""
    held: dict[str, int] = field(default_factory=dict)
    """Rank of the shard that a worker still holds at the committed step, when no cell is whole any more."""
    draining: dict[str, bool] = field(default_factory=dict)
    """Nodes that were told to go; whether all that can be done about it is done."""
    aside: frozenset[str] = frozenset()
    """Nodes that failed too often."""
    strikes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Committed steps at which each node lost a worker."""
    fatal: tuple[int, int] = (-1, 0)
    """The pending step at which workers last died, and how many generations it ended so."""
    keepers: dict[str, str] = field(default_factory=dict)
    """Who was told to copy its snapshots to whom."""
    copies: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    """Keeper -> rank -> committed steps of the copies it holds."""
    era: int = 0
    """The generation since which no step was undone: older copies may be of a history that was left."""
    recalled: int = -1
    """Steps of the copies from which the first cell is being formed."""
    unsaved: str = "nothing was said of it"
    """Why the last checkpoint that failed did."""
    verdict: str = ""
    """Why the run cannot go on: what is left to do is to save its state."""
    ends: Literal["failed", "stopped"] = "failed"
    """What the run ends as by its verdict."""
    committed: int = 0
    evaluated: int = -1
    checkpoint: int = 0
    """Steps of the last whole checkpoint; 0 is the initial state."""
    fruitless: int = 0
    """Generations and failed formations since the last committed step."""
    spent: int = 0
    """Workers that died since the last committed step."""
    furthest: int = 0
    """The most steps that were ever committed."""
    still: int = 0
    """Standstills since then."""
    unborn: dict[str, int] = field(default_factory=dict)
    """Workers in a row that died on each node before their first word."""
    cause: str = ""
    """What went wrong last: the reason of an end that only counts."""

    @classmethod
    def new(cls, shape: Shape, homes: Mapping[Seat, str], checkpoint: int = 0) -> State:
        """A run before its first worker has spoken. `homes`: the planned worker of each seat."""
        cells = [Cell((None,) * shape.workers) for _ in range(shape.cells)]
        return cls(
            shape,
            expected=frozenset(homes.values()),
            homes=dict(homes),
            cells=cells,
            committed=checkpoint,
            checkpoint=checkpoint,
        )

    def copy(self) -> State:
        return replace(
            self,
            workers=dict(self.workers),
            seats=dict(self.seats),
            cells=list(self.cells),
            successors=dict(self.successors),
            acks=dict(self.acks),
            awaited=set(self.awaited),
            finished=set(self.finished),
            held=dict(self.held),
            tainted=set(self.tainted),
            draining=dict(self.draining),
            strikes=dict(self.strikes),
            unborn=dict(self.unborn),
            keepers=dict(self.keepers),
            copies={keeper: dict(held) for keeper, held in self.copies.items()},
        )

    def seat(self, worker: str) -> Seat | None:
        return self.seats.get(worker)

    def put(self, index: int, members: Sequence[str | None], phase: Phase, rung: str | None = None) -> None:
        """Give cell `index` these members and phase; nobody of them has said to be ready. Whenever a cell stops being
        one, its next formation gets a name of its own."""
        cell = self.cells[index]
        for old in cell.people():
            self.seats.pop(old, None)
        for rank, member in enumerate(members):
            if member is not None:
                self.seats[member] = Seat(index, rank)
        attempt, named = cell.attempt, cell.named
        if phase == "empty" and cell.phase != "empty":
            attempt = named = named + 1
        self.cells[index] = Cell(tuple(members), phase, attempt, named, frozenset(), rung or cell.rung)

    def empty(self, index: int, rung: str | None = None) -> None:
        """Cell `index` is no cell any more: its members keep their seats, or a successor takes its place and theirs, as
        far as it has come."""
        successor = self.successors.pop(index, None)
        members = self.cells[index].members if successor is None else successor.members
        self.put(index, members, "empty", rung)
        if successor is not None:
            cell = self.cells[index]
            self.cells[index] = replace(successor, named=cell.named, rung=cell.rung)

    def disband(self, worker: str) -> None:
        """`worker` cannot be part of a successor: the others of it are spares again."""
        self.successors = {index: cell for index, cell in self.successors.items() if worker not in cell.members}

    def spares(self) -> dict[str, str]:
        """Warm workers without a seat, in a successor too -> node, on nodes that may be used."""
        taken = {member for cell in self.successors.values() for member in cell.people()}
        return {
            name: worker.node
            for name, worker in self.workers.items()
            if name not in self.seats
            and name not in taken
            and worker.node not in self.draining
            and worker.node not in self.aside
        }

    def crew(self, cells: Sequence[int] | None = None) -> list[str]:
        """Living workers of the given cells; by default of the current generation's."""
        return [member for cell in (self.live if cells is None else cells) for member in self.cells[cell].people()]
