"""What the controller is to do: the answers of `decide`. Plain values; tests and the simulator step through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.decisions.modes import Status
from shoal.ladder import Rung
from shoal.plan import Seat
from shoal.protocol.said import Committed

__all__ = [
    "Action",
    "CommitLate",
    "Copied",
    "CopyTo",
    "Death",
    "Decision",
    "End",
    "Fence",
    "Form",
    "Generation",
    "Hire",
    "Journal",
    "Leaves",
    "Pause",
    "PutOnRecord",
    "Recall",
    "Refill",
    "Release",
    "Reshaped",
    "Rewind",
    "SetAside",
    "Stop",
]


@dataclass(frozen=True)
class Recall:
    """Copies to go on from: of the state after `steps` committed steps; `keepers`: who holds each rank's, in the shape
    of the number `shape`."""

    steps: int
    keepers: tuple[str, ...]
    shape: int = 0


@dataclass(frozen=True)
class Refill:
    """What shards are filled from: of the state after `steps` committed steps. `shards`: the holders of each rank's, by
    the number of their shape; `copies`: kept for others."""

    steps: int
    shards: Mapping[int, tuple[tuple[str, ...], ...]] = field(default_factory=dict, hash=False)
    copies: Recall | None = None


@dataclass(frozen=True)
class Form:
    """Build (again) the world of a cell with these members; load the checkpoint of `restore` steps if given, or
    (`keep`) go on from the state that each member kept when it left its former world, or (`recall`) from copies, or
    (`refill`) from what others hold of other shapes. `shape`: the number of the cell's."""

    cell: int
    attempt: int
    members: tuple[str, ...]
    restore: int | None = None
    keep: bool = False
    recall: Recall | None = None
    shape: int = 0
    refill: Refill | None = None


@dataclass(frozen=True)
class CopyTo:
    """From now on copy snapshots to a keeper: owner -> keeper. `era`: the generation since which no step was undone."""

    era: int
    keepers: Mapping[str, str]


@dataclass(frozen=True)
class Stop:
    """Leave the generation at once and answer; if the cell is broken and the pending step's totals are not complete,
    leave its world too, so that peers blocked in it are freed. `known`: committed steps whose figures are known;
    `shape`: the number of the shape whose shards are asked after."""

    generation: int
    broken: tuple[int, ...]
    workers: tuple[str, ...]
    known: int = -1
    shape: int = 0


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
    """Somebody committed `steps`, with the figures `what`: commit it too."""

    generation: int
    steps: int
    workers: tuple[str, ...]
    what: Committed | None = None


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
class PutOnRecord:
    """A step is committed: `what` is its record. `live`: the cells of the generation."""

    what: Committed
    live: tuple[int, ...]


@dataclass(frozen=True)
class Death:
    """A worker died: for the journal and the account of its cell's recovery. `seat`: it sat there, in a cell that was
    `live` or not; `alive`: unix time of its last sign of life, if it is known; `committed`: steps at its death."""

    worker: str
    node: str
    pid: int | None
    how: str
    alive: float | None
    seat: Seat | None
    committed: int
    live: bool


@dataclass(frozen=True)
class Copied:
    """A worker of a cell that is healed has its copy of the state, after so many seconds; or one of a cell of another
    shape its shard, of which so many bytes came from elsewhere."""

    cell: int
    seconds: float
    bytes: int = 0


@dataclass(frozen=True)
class Reshaped:
    """The run takes another shape: for the account of what that took. `before`, `after`: (cells, workers of each);
    `idle`: workers without a seat, before and after; `wanted`: cells of the new shape that the run has at its best;
    `expected`: seconds to get there, those of the steps trained meanwhile, and bytes, which are None if nobody knew;
    `paused`: it was paused for that, else it could not train."""

    before: tuple[int, int]
    after: tuple[int, int]
    why: str
    idle: tuple[int, int]
    wanted: int
    expected: tuple[float, float, int | None] = (0.0, 0.0, None)
    paused: bool = True


@dataclass(frozen=True)
class Leaves:
    """A live cell is to leave nodes that will be taken away."""

    cell: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Fence:
    """Make sure that a worker which is taken for dead is dead."""

    worker: str
    how: str


@dataclass(frozen=True)
class Hire:
    """Start a spare worker on a node."""

    node: str


@dataclass(frozen=True)
class SetAside:
    """The checkpoint of `steps` is damaged: put it out of the way and say which is older (`PassedOver`)."""

    steps: int
    reason: str


@dataclass(frozen=True)
class Decision:
    """How the run goes on after something went wrong, and why."""

    rung: Rung
    cells: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Journal:
    """A line for the journal that means nothing else."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    status: Status
    reason: str
    by_controller: bool = False


Action = (
    Form
    | CopyTo
    | Stop
    | Pause
    | CommitLate
    | Release
    | Fence
    | Hire
    | SetAside
    | Generation
    | Rewind
    | PutOnRecord
    | Decision
    | Death
    | Leaves
    | Reshaped
    | Copied
    | Journal
    | End
)
