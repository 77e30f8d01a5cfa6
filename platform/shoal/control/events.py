"""What happens to a run beside what its workers say (`protocol.said`): the other events of `decide`. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

__all__ = ["Damaged", "Ending", "Event", "Joined", "Lost", "Preemption", "Standstill", "Unborn", "Wanted"]


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
    """A worker that was asked for died before its first word, or said as its only one that it cannot start."""

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
class Preemption:
    """A node will be taken away."""

    node: str


Event = (
    Joined
    | Lost
    | Unborn
    | Ready
    | Acked
    | Committed
    | Evaluated
    | Failed
    | Finished
    | CopyHeld
    | Checkpointed
    | NotSaved
    | Damaged
    | Preemption
    | Wanted
    | Standstill
    | Ending
)
