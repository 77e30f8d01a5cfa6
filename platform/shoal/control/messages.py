"""Events that no worker says (those are in `protocol.said`), and what is decided on them. Plain values: the tests step
through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shoal.plan import Seat
from shoal.protocol.said import (
    Acked,
    Checkpointed,
    Committed,
    CopyHeld,
    Evaluated,
    Failed,
    Finished,
    NotSaved,
    Ready,
)

__all__ = [
    "Action",
    "CommitLate",
    "CopyTo",
    "Damaged",
    "Draining",
    "End",
    "Ending",
    "Event",
    "Form",
    "Generation",
    "Joined",
    "Journal",
    "Lost",
    "Pause",
    "Recall",
    "Release",
    "Rewind",
    "Standstill",
    "Stop",
    "Unborn",
    "Wanted",
]

# ---- events


@dataclass(frozen=True)
class Joined:
    """A worker is warm and has said so."""

    worker: str
    node: str
    home: Seat | None = None


@dataclass(frozen=True)
class Lost:
    """A worker is dead, or is taken for dead and has been fenced."""

    worker: str
    how: str


@dataclass(frozen=True)
class Unborn:
    """A worker that was asked for died or hangs before its first word, or said as its only one that it cannot start."""

    worker: str
    node: str
    why: str


@dataclass(frozen=True)
class Damaged:
    """The checkpoint of `steps`, that cells were to be formed from, is not what was committed. `older`: the newest
    before it that the run may go back to; none is left if None."""

    steps: int
    older: int | None
    reason: str


@dataclass(frozen=True)
class Ending:
    """The run is to save its state and to end, for a reason that no worker said."""

    reason: str
    status: Literal["failed", "stopped"] = "failed"


@dataclass(frozen=True)
class Standstill:
    """No step was committed, and no worker of the run did anything else, for longer than any of it may take."""

    reason: str


@dataclass(frozen=True)
class Wanted:
    """Another run needs `count` slots for its seats: idle spares are to be given up."""

    count: int


@dataclass(frozen=True)
class Draining:
    """A node will be taken away."""

    node: str


FromWorker = Joined | Lost | Unborn | Ready | Acked | Committed | Evaluated | Failed | Finished | CopyHeld
Event = FromWorker | Checkpointed | Damaged | NotSaved | Draining | Wanted | Standstill | Ending

# ---- actions


@dataclass(frozen=True)
class Recall:
    """Copies to go on from: of the state after `steps` committed steps; `keepers`: who holds each rank's."""

    steps: int
    keepers: tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """Build (again) the world of a cell with these members; load the checkpoint of `restore` steps if given, or
    (`keep`) go on from the state that each member kept when it left its former world, or (`recall`) from copies."""

    cell: int
    attempt: int
    members: tuple[str, ...]
    restore: int | None = None
    keep: bool = False
    recall: Recall | None = None


@dataclass(frozen=True)
class CopyTo:
    """From now on copy snapshots to a keeper: owner -> keeper. `era`: the generation since which no step was undone;
    `ranks`: of the owners."""

    generation: int
    era: int
    keepers: Mapping[str, str]
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class Stop:
    """Leave the generation at once and answer; if the cell is broken and the pending step's totals are not complete,
    leave its world too, so that peers blocked in it are freed."""

    generation: int
    broken: tuple[int, ...]
    workers: tuple[str, ...]


@dataclass(frozen=True)
class Pause:
    """Leave the generation in order at the next boundary that all agree on (the vote carries it), and answer."""

    generation: int
    workers: tuple[str, ...]


@dataclass(frozen=True)
class Release:
    """These workers are needed no more."""

    workers: tuple[str, ...]


@dataclass(frozen=True)
class CommitLate:
    """Somebody committed `steps`: commit it too."""

    generation: int
    steps: int
    workers: tuple[str, ...]


@dataclass(frozen=True)
class Generation:
    """A new membership: `cells` go on from `steps`; `heals` are (from, to) copies; `todo` what is left of the step;
    `save`: write a checkpoint before going on; `halt`: and do not go on."""

    generation: int
    cells: Mapping[int, tuple[str, ...]]
    attempts: Mapping[int, int]
    steps: int
    evaluated: int
    todo: Mapping[int, list[int]]
    heals: tuple[tuple[int, int], ...]
    save: bool = False
    halt: bool = False


@dataclass(frozen=True)
class Rewind:
    """No copy in memory is left: committed steps from `steps` on are undone; `lost` of them."""

    steps: int
    lost: int


@dataclass(frozen=True)
class Journal:
    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    status: Literal["done", "failed", "stopped"]
    reason: str


Action = Form | CopyTo | Stop | Pause | CommitLate | Release | Generation | Rewind | Journal | End
