"""What the controller knows: values only, no Ray, no sockets, no clock.

Whatever is asked for at every event is kept by what it is asked by (cells by phase, workers by node), so that nothing
looks through all workers but the end of one generation and the beginning of the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from shoal.decisions.cells import Cell, Cells, Formation
from shoal.decisions.copies import Copies
from shoal.decisions.modes import Gathering, Halt, Mode, Pausing, Running, Stopping
from shoal.decisions.shape import Shape
from shoal.decisions.stragglers import Stragglers
from shoal.decisions.tally import Tally
from shoal.decisions.watchdog import Watchdog
from shoal.plan import Seat
from shoal.plan.reshape import Seen
from shoal.protocol.said import Ack, Committed
from shoal.timeouts import Timeouts

__all__ = ["Considered", "Former", "Left", "Shape", "State", "Worker"]


@dataclass(frozen=True)
class Worker:
    """A living, warm worker. `home`: the seat it was started for, if any; `since`: monotonic time of its coming."""

    node: str
    home: Seat | None = None
    since: float = 0.0


@dataclass
class Former:
    """A shape that a run has left, or could not take, until a step is committed in another: whoever lives may keep its
    shard of it still, after `steps` committed steps (`held`: of which rank), and copies of them others."""

    shape: Shape
    steps: int
    held: dict[str, int] = field(default_factory=dict)
    copies: Copies = field(default_factory=Copies)

    def copy(self) -> Former:
        return replace(self, held=dict(self.held), copies=self.copies.copy())

    def holders(self) -> tuple[tuple[str, ...], ...]:
        """Of each rank's shard."""
        found: list[list[str]] = [[] for _ in range(self.shape.workers)]
        for worker, rank in sorted(self.held.items()):
            found[rank].append(worker)
        return tuple(map(tuple, found))


@dataclass
class Left:
    """What living workers that are in no cell any more still keep: their shards (`held`: of which rank) after `steps`
    committed steps, in the shape of this number. It counts until another step is committed."""

    steps: int = -1
    number: int = 0
    held: dict[str, int] = field(default_factory=dict)

    def of(self, steps: int, number: int) -> dict[str, int]:
        return self.held if (self.steps, self.number) == (steps, number) else {}


@dataclass(frozen=True)
class Considered:
    """What was `known` when another shape was last asked for, and the time (monotonic) from which on that is done
    `again` though nothing has changed."""

    known: tuple[int, ...] = ()
    again: float = inf


@dataclass
class State:
    """The run as the controller sees it."""

    shape: Shape
    cells: Cells
    mode: Mode = field(default_factory=Gathering)
    generation: int = -1
    committed: int = 0
    evaluated: int = -1
    checkpoint: int = 0
    """Steps of the last whole checkpoint; 0 is the initial state."""
    halt: Halt | None = None
    """Set when the run cannot go on."""
    formers: tuple[Former, ...] = ()
    """Shapes of before, the newest first."""
    left: Left = field(default_factory=Left)
    unsaved: str = "nothing was said of it"
    """Why the last checkpoint that failed did."""
    saving: str = ""
    """What keeps checkpoints from becoming whole, as it was told; "" once one is."""
    successors: dict[int, Cell] = field(default_factory=dict)
    """Cells formed on spares beside the live ones that they are to take the place of, whose nodes go."""
    homes: Mapping[Seat, str] = field(default_factory=dict)
    """The planned worker of each seat."""
    expected: dict[str, Seat] = field(default_factory=dict)
    """Planned workers that have not said a word yet."""
    arriving: Counter[int] = field(default_factory=Counter)
    """How many of them, by the cell they are planned for."""
    workers: dict[str, Worker] = field(default_factory=dict)
    seats: dict[str, Seat] = field(default_factory=dict)
    """Of every worker that sits in a cell."""
    idle: set[str] = field(default_factory=set)
    """Workers that sit in none."""
    on_node: dict[str, set[str]] = field(default_factory=dict)
    """Workers by node."""
    coming: dict[str, float] = field(default_factory=dict)
    """Living nodes on which a worker died and another is to be started, and until when (monotonic) it is waited for."""
    tainted: set[str] = field(default_factory=set)
    """Workers whose state is not to be trusted, until they are healed."""
    going: dict[str, bool] = field(default_factory=dict)
    """Nodes that will be taken away; whether all that can be done about it is done."""
    deadlines: dict[str, float] = field(default_factory=dict)
    """When (unix time), as far as it is known."""
    aside: frozenset[str] = frozenset()
    """Nodes that failed too often."""
    copies: Copies = field(default_factory=Copies)
    """Of snapshots, in other workers' memory."""
    spares_from: float = 0.0
    """Monotonic time before which no spares are asked for: another run was given room."""
    newest: Committed | None = None
    """The newest committed step whose figures are known: what a laggard needs to commit it too."""
    recorded: int = 0
    """Steps whose record was asked for."""
    unrecorded: dict[int, Committed] = field(default_factory=dict)
    """Words of steps that are not on record because words of steps before may still come."""
    told: dict[str, int] = field(default_factory=dict)
    """The number of each worker's last word that a controller before this one put into the journal."""
    now: float = 0.0
    """Monotonic time of the last look at workers or nodes."""
    changes: int = 0
    """Workers that came or went."""
    considered: Considered = Considered()
    seen: Seen = field(default_factory=Seen)
    """What it has seen itself of what things take."""
    tally: Tally = field(default_factory=Tally)
    stragglers: Stragglers = field(default_factory=Stragglers)
    watchdog: Watchdog = field(init=False)

    def __post_init__(self) -> None:
        self.watchdog = Watchdog(Timeouts(self.shape.patience, self.shape.wanted))

    @classmethod
    def new(cls, shape: Shape, homes: Mapping[Seat, str], checkpoint: int = 0) -> State:
        """A run before its first worker has spoken. `homes`: the planned worker of each seat."""
        return cls(
            shape,
            Cells(Cell((None,) * shape.workers) for _ in range(shape.cells)),
            homes=dict(homes),
            expected={worker: seat for seat, worker in homes.items()},
            arriving=Counter(seat.cell for seat in homes),
            committed=checkpoint,
            checkpoint=checkpoint,
            recorded=checkpoint,
        )

    def copy(self) -> State:
        other = replace(
            self,
            cells=self.cells.copy(),
            mode=self.mode.copy(),
            successors=dict(self.successors),
            expected=dict(self.expected),
            arriving=self.arriving.copy(),
            workers=dict(self.workers),
            seats=dict(self.seats),
            idle=set(self.idle),
            on_node={node: set(names) for node, names in self.on_node.items()},
            coming=dict(self.coming),
            tainted=set(self.tainted),
            going=dict(self.going),
            deadlines=dict(self.deadlines),
            copies=self.copies.copy(),
            formers=tuple(former.copy() for former in self.formers),
            left=replace(self.left, held=dict(self.left.held)),
            unrecorded=dict(self.unrecorded),
            tally=self.tally.copy(),
            stragglers=self.stragglers.copy(),
        )
        other.watchdog = self.watchdog.copy()
        return other

    # ---- the generation

    @property
    def known(self) -> int:
        """Committed steps whose figures are known."""
        return -1 if self.newest is None else self.newest.steps

    @property
    def live(self) -> tuple[int, ...]:
        """The cells of the current generation."""
        return self.mode.live if isinstance(self.mode, Running | Pausing | Stopping) else ()

    @property
    def acks(self) -> dict[str, Ack]:
        """Who has answered the stop or pause that ends the generation, and how."""
        return self.mode.acks if isinstance(self.mode, Pausing | Stopping) else {}

    @property
    def awaited(self) -> set[str]:
        """Living workers of the generation whose answer is still to come."""
        return self.mode.awaited if isinstance(self.mode, Pausing | Stopping) else set()

    def members(self, cells: Iterable[int] | None = None) -> Iterator[str]:
        """Living workers of the given cells; by default of the current generation's."""
        return (name for cell in (self.live if cells is None else cells) for name in self.cells[cell].members if name)

    def crew(self, cells: Iterable[int] | None = None) -> list[str]:
        """The same, all at once."""
        return list(self.members(cells))

    # ---- workers

    def heard(self, worker: str) -> None:
        """`worker` is expected no more."""
        home = self.expected.pop(worker, None)
        if home is not None:
            self.arriving[home.cell] -= 1

    def enter(self, name: str, worker: Worker) -> None:
        """A warm worker is there."""
        self.workers[name] = worker
        self.changes += 1
        self.on_node.setdefault(worker.node, set()).add(name)
        if name not in self.seats:
            self.idle.add(name)

    def leave(self, name: str) -> Worker | None:
        """A worker is there no more: it has no copies and is part of no successor; its seat is another matter."""
        worker = self.workers.pop(name, None)
        if worker is not None:
            self.changes += 1
            self.on_node[worker.node].discard(name)
            if not self.on_node[worker.node]:
                del self.on_node[worker.node]
                self.coming.pop(worker.node, None)
        self.idle.discard(name)
        self.copies.held.pop(name, None)
        self.left.held.pop(name, None)
        for former in self.formers:
            former.held.pop(name, None)
            former.copies.held.pop(name, None)
        self.disband(name)
        return worker

    def may_be_used(self, node: str) -> bool:
        """Whether cells may be put on a node."""
        return node not in self.going and node not in self.aside

    # ---- seats

    def put(self, index: int, members: Sequence[str | None], phase: Formation) -> None:
        """Give cell `index` these members and phase; nobody of them has said to be ready. Whenever a cell stops being
        one, its next formation gets a name of its own."""
        cell = self.cells[index]
        for old in cell.people():
            self.seats.pop(old, None)
            if old in self.workers:
                self.idle.add(old)
        for rank, member in enumerate(members):
            if member is not None:
                self.seats[member] = Seat(index, rank)
                self.idle.discard(member)
        if phase == "forming":
            self.watchdog.moved = None
        attempt, named = cell.attempt, cell.named
        if phase == "empty" and cell.phase != "empty":
            attempt = named = named + 1
        self.cells[index] = Cell(tuple(members), phase, attempt, named)

    def empty(self, index: int) -> None:
        """Cell `index` is no cell any more: its members keep their seats, or a successor takes its place and theirs, as
        far as it has come."""
        successor = self.successors.pop(index, None)
        members = self.cells[index].members if successor is None else successor.members
        self.put(index, members, "empty")
        if successor is not None:
            self.cells[index] = replace(successor, named=self.cells[index].named)

    def clear(self, index: int) -> None:
        """Cell `index` has no members any more."""
        self.put(index, (None,) * self.shape.workers, "empty")

    def disband(self, worker: str) -> None:
        """`worker` cannot be part of a successor: the others of it are spares again."""
        if self.successors:
            self.successors = {index: cell for index, cell in self.successors.items() if worker not in cell.members}
