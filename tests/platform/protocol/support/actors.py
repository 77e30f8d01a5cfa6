"""Values of the model: a worker, the orders that are on their way to it, and a picture of the whole.

A worker is what `shoal.worker.loop` is once tensors, sockets and clocks are taken away. Everything is hashable, so that
a state is explored once however it was reached.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, NamedTuple

from shoal.decisions.actions import Action, CommitLate, Form, Generation, Pause, Stop
from shoal.decisions.cells import Cells
from shoal.decisions.shape import Shape
from shoal.decisions.state import Former
from shoal.protocol.said import Committed

__all__ = [
    "ACROSS",
    "BEGIN",
    "HEAL",
    "INSIDE",
    "MEET",
    "VOTE",
    "Kept",
    "Published",
    "Violation",
    "Worker",
    "World",
    "freeze",
    "order_of",
    "reach",
]

MEET, HEAL, BEGIN = -3, -2, -1
INSIDE, ACROSS, VOTE = 0, 1, 2


def reach(step: int, phase: int) -> int:
    """How far into a generation: collectives are entered in one order, so having entered one is having entered all
    before it. Joining (`MEET`, `HEAL`, `BEGIN`) comes first, then three a step."""
    return 3 * step + phase


DERIVED = ("homes", "on_node", "idle", "arriving", "now", "changes", "considered")
"""What never changes, and what follows from the rest or is but asked by."""
COUNTED = (
    *("fruitless", "spent", "furthest", "unborn", "strikes", "fatal", "cause", "not_finite", "roll_backs", "erred"),
    *("assigned", "since", "stragglers", "spares_from", "told", "timeouts", "seconds", "gap", "full"),
)
"""What only counts: towards the end of a run that does not get on, far off with the few faults of a search, or by the
clock, which is fed so that nothing depends on it."""


class Violation(Exception):
    """An invariant does not hold."""


class Kept(NamedTuple):
    """A shard that a worker keeps in no world."""

    shape: int
    steps: int
    history: tuple[int, ...]
    rank: int


class Worker(NamedTuple):
    """One worker. `alive`; `dead`: and the controller does not know; `cut`: fenced by the controller, but still running
    (frozen for a while, or behind a partition); `gone`: dead, and known to be."""

    life: str = "alive"
    doing: str = "idle"
    """idle: serves orders · forming · meeting · healing · beginning · inside · across · voting · applied, paused: has
    committed, nobody knows (and will pause) · late: has committed late, nobody knows · answering: has told, still
    owes an answer · fell: has left its broken world, nobody knows."""
    form: tuple[Any, ...] | None = None
    """The formation it entered last: (cell, attempt, members, restore, keep, shape, refill)."""
    stands: bool = False
    """It is in the world of `form`, with a model built."""
    steps: int = -1
    history: tuple[int, ...] = ()
    """The generation whose totals it applied, for each committed step."""
    total: int = -1
    """The generation whose complete totals of the pending step it holds; -1: none."""
    done: tuple[int, ...] = ()
    todo: tuple[int, ...] = ()
    kept: tuple[Kept, ...] = ()
    """What it kept when it left a world, of the shape before the present one too: sorted."""
    broken: bool = False
    stopping: bool = False
    """It has answered the stop before, committed late, and only helps its cell through the next step's sums."""
    turned: int = -1
    """The generation in which it turned round at a meeting, and went no further."""
    unsaid: int = -1
    """Steps of its last commit, if nobody was told of it: only the first of a cell tells each of its commits."""
    over: str = ""
    """Why it takes part in its generation no more: finished, answered, failed."""
    asked: int = 0
    """The shape that it was last asked after."""
    pause: int = -1
    """The generation that it was told to leave in order."""
    asks: int = -1
    """The first step of its generation whose vote it enters with that word."""
    order: tuple[Any, ...] | None = None
    """Its generation: (number, cells, steps, todo, heals)."""
    reach: int = MEET
    inbox: tuple[tuple[Any, ...], ...] = ()

    @property
    def generation(self) -> int:
        return -1 if self.order is None else int(self.order[0])

    @property
    def cell(self) -> int:
        assert self.form is not None
        return int(self.form[0])

    @property
    def shape(self) -> int:
        """Of the cell that it formed last."""
        return -1 if self.form is None else int(self.form[5])

    def totals(self) -> tuple[int, ...]:
        """The generations whose totals made its state, wherever it keeps it."""
        if self.stands or not self.kept:
            return self.history
        return max(self.kept, key=lambda kept: kept.steps).history

    def stopped(self) -> bool:
        """A stop has arrived."""
        return any(order[0] == "stop" for order in self.inbox)

    def told(self) -> bool:
        """An order that interrupts it has arrived (a pause does not)."""
        return bool(self.inbox) and self.inbox[0][0] != "pause"


class Published(NamedTuple):
    """What the journal says of a generation."""

    generation: int = -1
    cells: tuple[tuple[int, tuple[str, ...]], ...] = ()
    attempts: tuple[tuple[int, int], ...] = ()
    shape: Shape | None = None
    """None: that which the run began with."""
    former: Shape | None = None
    """That before."""
    changed: int = -1
    """Steps at which it changed, if no generation has begun at others since."""


class World(NamedTuple):
    """Everything. `controller`: number of an interned controller state; `log`: generation of each step on record."""

    controller: int
    log: tuple[int, ...]
    workers: tuple[int, ...]
    """Numbers of interned workers."""
    published: Published
    """The newest generation on record."""
    faults: tuple[str, ...]
    """Faults that may still happen."""


def freeze(value: Any) -> Any:
    """A key of a controller state: equal for equal states."""
    if isinstance(value, Committed):
        return value.steps
    if isinstance(value, Shape):
        return value.number, value.cells, value.workers
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        return tuple(freeze(getattr(value, name)) for name in compared(kind))
    if isinstance(value, dict):
        return frozenset((name, freeze(item)) for name, item in value.items())
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, Cells):
        return tuple(value)
    if type(value) is tuple and value and isinstance(value[0], Former):
        return tuple(map(freeze, value))
    return value


@cache
def compared(kind: Any) -> tuple[str, ...]:
    return tuple(item.name for item in dataclasses.fields(kind) if item.name not in (*DERIVED, *COUNTED))


def order_of(action: Action, number: dict[str, int], record: int) -> tuple[Any, ...] | None:
    """What a worker is sent for an action; None if nothing is. `record`: generation of the newest step on record."""
    match action:
        case Form(cell, attempt, members, restore, keep, _, shape, refill):
            sources = None
            if refill is not None:
                shards = (
                    (shape, tuple(tuple(number[m] for m in of_rank) for of_rank in holders))
                    for shape, holders in refill.shards.items()
                )
                sources = (refill.steps, tuple(shards))
            return ("form", (cell, attempt, tuple(number[m] for m in members), restore, keep, shape, sources))
        case Stop(generation, broken, _, known, shape):
            return ("stop", generation, broken, known, shape)
        case Pause(generation, _):
            return ("pause", generation)
        case CommitLate(generation, steps, _):
            return ("commit_late", generation, record, steps)
        case Generation():
            cells = tuple((c, tuple(number[m] for m in crew)) for c, crew in sorted(action.cells.items()))
            todo = tuple((c, tuple(ms)) for c, ms in sorted(action.todo.items()))
            return ("generation", (action.generation, cells, action.steps, todo, action.heals))
    return None
