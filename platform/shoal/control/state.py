"""What the controller knows: values only, no Ray, no sockets, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from shoal.plan import Seat

__all__ = ["Ack", "Cell", "Phase", "Shape", "State", "Worker"]

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


@dataclass(frozen=True)
class Worker:
    """A living, warm worker. `home`: the seat it was started for, if any."""

    node: str
    home: Seat | None = None


@dataclass(frozen=True)
class Cell:
    """One replica: who sits in it and how far it is.

    `attempt` counts formations: the name of a cell's world, so that nobody meets in a broken one.
    """

    members: tuple[str | None, ...]
    phase: Phase = "empty"
    attempt: int = 0
    ready: frozenset[str] = frozenset()
    rung: str = "start"

    def without(self, worker: str) -> Cell:
        return replace(self, members=tuple(None if m == worker else m for m in self.members))

    def people(self) -> list[str]:
        return [m for m in self.members if m is not None]


@dataclass(frozen=True)
class Ack:
    """A worker's answer to a stop: it takes no part in the generation any more.

    `steps`: committed steps its state stands for (-1: not healed yet); `evaluated`: the last boundary it evaluated at;
    `done`: micro-batches of the pending step that its cell has accumulated; `out`: it has left its cell's world.
    """

    steps: int
    evaluated: int = -1
    done: tuple[int, ...] = ()
    out: bool = False


@dataclass
class State:
    """The run as the controller sees it. `decide` never changes one in place: it works on a copy."""

    shape: Shape
    expected: frozenset[str] = frozenset()
    """Workers that were asked for and have not said a word yet, each for its home seat."""
    homes: Mapping[Seat, str] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    mode: Mode = "gathering"
    generation: int = -1
    live: tuple[int, ...] = ()
    broken: frozenset[int] = frozenset()
    acks: dict[str, Ack] = field(default_factory=dict)
    commits: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    raised: int = -1
    """Highest step count that laggards of this drain were told to commit up to."""
    committed: int = 0
    evaluated: int = -1
    checkpoint: int = 0
    """Steps of the last whole checkpoint; 0 is the initial state."""
    fruitless: int = 0
    """Generations since the last committed step."""

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
            cells=list(self.cells),
            acks=dict(self.acks),
            commits=dict(self.commits),
            finished=set(self.finished),
        )

    def seat(self, worker: str) -> Seat | None:
        for index, cell in enumerate(self.cells):
            if worker in cell.members:
                return Seat(index, cell.members.index(worker))
        return None

    def spares(self) -> dict[str, str]:
        """Warm workers without a seat -> node."""
        seated = {member for cell in self.cells for member in cell.members}
        return {name: worker.node for name, worker in self.workers.items() if name not in seated}

    def crew(self, cells: tuple[int, ...] | list[int] | None = None) -> list[str]:
        """Living workers of the given cells; by default of the current generation's."""
        return [member for cell in (self.live if cells is None else cells) for member in self.cells[cell].people()]
