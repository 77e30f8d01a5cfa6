"""What happens to a run beside what its workers say (`protocol.said`): the other events of `decide`. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from shoal.plan import Node, Seat
from shoal.plan.reshape import Took
from shoal.protocol.said import (
    Acked,
    Adopted,
    Checkpointed,
    Committed,
    CopyHeld,
    Evaluated,
    Failed,
    Finished,
    Noted,
    NotSaved,
    Phase,
    Ready,
)

__all__ = [
    "Asked",
    "Changed",
    "Ending",
    "Erred",
    "Event",
    "FromWorker",
    "Joined",
    "Looked",
    "Lost",
    "PassedOver",
    "Preemption",
    "RecordFull",
    "Recorded",
    "Sign",
    "Surveyed",
    "TakenOver",
    "Unborn",
    "Wanted",
]


@dataclass(frozen=True)
class Joined:
    """A worker is warm and has said so (`pid`), or is known again by a controller that took over. `device`: the number
    of its own GPU on its node, if it has one."""

    worker: str
    node: str
    home: Seat | None = None
    pid: int | None = None
    device: str = ""


@dataclass(frozen=True)
class Lost:
    """A worker is dead, or is taken for dead and has been fenced. `alive`: unix time of its last sign of life; not
    known if None."""

    worker: str
    how: str
    node: str = ""
    pid: int | None = None
    alive: float | None = None


@dataclass(frozen=True)
class Unborn:
    """A worker that was asked for died before its first word, or said as its only one that it cannot start."""

    worker: str
    node: str
    why: str
    trace: str = ""


class Sign(NamedTuple):
    """What a connected worker was last heard of. Monotonic times: `heard`: of its last word; `since`: of its last
    change of phase or step. `silent`: seconds since its last word in which it could have been heard."""

    worker: str
    phase: Phase
    steps: int
    heard: float
    since: float
    silent: float


class Asked(NamedTuple):
    """A worker that was asked for `seconds` ago and has not said a word. `there`: its node is."""

    worker: str
    node: str
    seconds: float
    there: bool = True


@dataclass(frozen=True)
class Looked:
    """Many times a second: who was last heard of when. `now`: monotonic time; `late`: seconds by which the look comes
    late, in which nobody was listened to; `gap`: the longest silence that ended since the last look."""

    now: float
    signs: tuple[Sign, ...]
    asked: tuple[Asked, ...] = ()
    late: float = 0.0
    gap: float = 0.0


@dataclass(frozen=True)
class Surveyed:
    """Once a second: the living nodes, and the node of each worker that was asked for and has not said a word."""

    now: float
    nodes: tuple[Node, ...]
    asked: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Preemption:
    """A node will be taken away at `deadline` (unix time)."""

    node: str
    deadline: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """The run `to` needs `count` slots for its seats: idle spares are to be given up. `cold`: those that were asked for
    and have not said a word; `now`: monotonic time."""

    count: int
    to: str = ""
    cold: tuple[str, ...] = ()
    now: float = 0.0


@dataclass(frozen=True)
class PassedOver:
    """The checkpoint of `steps`, that cells were to be formed from, is not what was committed and has been set aside.
    `older`: the newest before it that the run may go back to; none is left if None."""

    steps: int
    older: int | None
    reason: str


@dataclass(frozen=True)
class Recorded:
    """A committed step is on record."""

    steps: int


@dataclass(frozen=True)
class Changed:
    """The account of a change of shape, or of a heal, is on record."""

    took: Took


@dataclass(frozen=True)
class RecordFull:
    """So many lines wait for a disk that no more may."""

    reason: str
    lines: int


@dataclass(frozen=True)
class Erred:
    """The controller's own code failed over a worker's word, or over a step's record."""

    why: str


@dataclass(frozen=True)
class TakenOver:
    """This controller knows again what one before it knew, and what its workers have said since."""


@dataclass(frozen=True)
class Ending:
    """The run is to end, for a reason that no worker said; `at_once`: without saving its state."""

    reason: str
    status: Literal["failed", "stopped"] = "failed"
    at_once: bool = False


FromWorker = (
    Ready | Acked | Adopted | Committed | Evaluated | Failed | Finished | CopyHeld | Checkpointed | NotSaved | Noted
)
Event = (
    FromWorker
    | Joined
    | Lost
    | Unborn
    | Looked
    | Surveyed
    | Preemption
    | Wanted
    | PassedOver
    | Recorded
    | Changed
    | RecordFull
    | Erred
    | TakenOver
    | Ending
)
