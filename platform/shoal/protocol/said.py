"""What a worker says to the controller. All but `Beat`, `CannotStart` and questions are events of `decisions.decide`.

A message names the worker that says it; the lifeline refuses one in another's name. `number` counts what a worker says,
so that a controller that takes over knows what it has heard through the one before it; -1 stands for no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from pydantic import JsonValue

from shoal.protocol.rendezvous import Meet, Put, Turn, Want

__all__ = [
    "Ack",
    "Acked",
    "Adopted",
    "Beat",
    "CannotStart",
    "Checkpointed",
    "Committed",
    "CopyHeld",
    "Damage",
    "Evaluated",
    "Failed",
    "Finished",
    "Moved",
    "NotSaved",
    "Noted",
    "Number",
    "Phase",
    "Ready",
    "Said",
    "Told",
    "Where",
    "Word",
]

Number = int | float
Where = Literal["cell", "between", "form", "code", "device", "memory"]


class Phase(StrEnum):
    """What a worker is doing."""

    UNBORN = "unborn"
    """It cannot start, and says why with its only word."""
    SPARE = "spare"
    FORMING = "forming"
    READY = "ready"
    JOINING = "joining"
    INSIDE = "inside"
    """In a step, in its cell's part."""
    ACROSS = "across"
    """In a step, in the sums over cells and the vote."""
    EVALUATING = "evaluating"
    SAVING = "saving"
    FINISHED = "finished"
    LEAVING = "leaving"
    """It takes its cell's world down, which may hold its interpreter for a while."""
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Word:
    """What every message of a worker has."""

    number: int = field(default=-1, kw_only=True, compare=False)


@dataclass(frozen=True)
class Beat:
    """A sign of life. `steps`: committed steps of its state (-1: it has none); `node`: now and then, figures of its
    node (`worker.machine`)."""

    phase: Phase
    steps: int
    node: Mapping[str, Number] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Moved:
    """A worker's last word to a controller: it obeys another one of the run from now on."""


@dataclass(frozen=True)
class CannotStart(Word):
    """A worker's only word: why its process ends before it could do anything."""

    worker: str
    message: str
    trace: str


@dataclass(frozen=True)
class Ready(Word):
    """A worker stands in its cell's new world with a model built. `seconds`, `bytes`: to fill its shard from those of
    another shape, and what of it came from others; `held`: all bytes of the shard."""

    worker: str
    cell: int
    attempt: int
    seconds: float = 0.0
    bytes: int = 0
    held: int = 0


@dataclass(frozen=True)
class Adopted(Word):
    """A worker has joined a generation in which state was copied to or from its cell, in `seconds`."""

    worker: str
    generation: int
    seconds: float


@dataclass(frozen=True)
class Ack:
    """A worker's answer to a stop: it takes no part in the generation any more.

    `steps`: committed steps its state stands for (-1: not healed yet); `evaluated`: the last boundary it evaluated at;
    `done`: micro-batches of the pending step that its cell has accumulated; `out`: it has left its cell's world (its
    state it keeps); `whole`: the pending step's totals are complete here, so that it can still commit it; `rank`: which
    shard of the state it holds, in the shape that was asked after; `former`: it keeps one of another shape too.
    """

    steps: int
    evaluated: int = -1
    done: tuple[int, ...] = ()
    out: bool = False
    whole: bool = False
    rank: int = -1
    former: bool = False


@dataclass(frozen=True)
class Acked(Word):
    worker: str
    generation: int
    ack: Ack


@dataclass(frozen=True)
class Committed(Word):
    """`worker` applied its optimizer step: `steps` are committed in its state.

    The first worker of each cell says it of every step; any other only before it leaves a generation, if the controller
    may not know.

    `seconds`: since the commit before; `cells`: that took part; `metrics`: the workload's figures; `stats`, `norm_sq`:
    what a laggard needs to commit it too; `rolled_back`: steps of the snapshot that was gone back to. If samples are
    audited: `takers`: for each sample an index into `crew`; `cell_of`: the cell of each of `crew`. Only the first
    worker of the first cell says `pace` (seconds a micro-batch of every worker) and, when they were compared,
    `checksums` (of every worker's state); both are in the order of cells and ranks.
    """

    worker: str
    generation: int
    steps: int
    seconds: float = 0.0
    cells: int = 0
    metrics: Mapping[str, Number | None] = field(default_factory=dict, hash=False)
    stats: tuple[float, ...] = ()
    norm_sq: float = 0.0
    takers: tuple[int, ...] = ()
    crew: tuple[str, ...] = ()
    cell_of: tuple[int, ...] = ()
    pace: tuple[float, ...] = ()
    rolled_back: int | None = None
    checksums: tuple[float, ...] = ()


@dataclass(frozen=True)
class Evaluated(Word):
    worker: str
    generation: int
    steps: int
    metrics: Mapping[str, Number | None] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Damage:
    """The checkpoint of `steps` is not what was committed."""

    steps: int
    reason: str


@dataclass(frozen=True)
class Failed(Word):
    """A worker cannot go on. `where`: `cell` (its cell's world is unusable), `between` (a collective between cells
    failed), `form` (its new world did not come up), `code` (an exception of the training code itself), `device` (its
    device cannot be used any more) and `memory` (its device's is full), after which its process ends by itself."""

    worker: str
    generation: int
    where: Where
    message: str = ""
    attempt: int = -1
    trace: str = ""
    damaged: Damage | None = None


@dataclass(frozen=True)
class Finished(Word):
    """A worker has committed all steps of the run."""

    worker: str
    generation: int


@dataclass(frozen=True)
class CopyHeld(Word):
    """`worker` holds a whole copy of the shard of `rank` after `steps` committed steps, in the shape of the number
    `shape`. `era`: see `orders.Keeper`."""

    worker: str
    rank: int
    steps: int
    era: int
    shape: int = 0


@dataclass(frozen=True)
class Checkpointed(Word):
    """A checkpoint of `steps` committed steps is whole."""

    steps: int
    worker: str = ""
    path: str = ""
    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class NotSaved(Word):
    """A checkpoint of `steps` committed steps will never be whole; `remedy`: what can be done about it."""

    steps: int
    reason: str
    worker: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Noted(Word):
    """The workload remarks on `step`: a line of `kind` for the journal."""

    worker: str
    generation: int
    step: int
    kind: str
    fields: Mapping[str, JsonValue] = field(default_factory=dict, hash=False)


Told = (
    CannotStart
    | Ready
    | Adopted
    | Acked
    | Committed
    | Evaluated
    | Failed
    | Finished
    | CopyHeld
    | Checkpointed
    | NotSaved
    | Noted
)
"""What must not be lost: it is numbered, and said again to a controller that comes back."""

Said = Beat | Moved | Told | Put | Want | Meet | Turn
