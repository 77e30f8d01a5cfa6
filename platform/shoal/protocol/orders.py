"""What one worker is told. Used by the module's name (`orders.Stop`), since the controller's actions, which are about a
whole run, have the same names.

An order holds what its receiver needs and nothing of others, so that it is small however large the run: most are the
same for a whole cell or for everybody, and encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.protocol.rendezvous import Closed, Met, Values
from shoal_core.mesh import Mesh

__all__ = [
    "CommitLate",
    "Copy",
    "CopyTo",
    "Fence",
    "Form",
    "Generation",
    "Keeper",
    "Order",
    "Pause",
    "Profile",
    "Published",
    "Recall",
    "Refill",
    "Stop",
]


@dataclass(frozen=True)
class Keeper:
    """Where copies go to or come from. `era`: of the run's history, anew whenever steps were undone."""

    address: tuple[str, int]
    era: int = 0


@dataclass(frozen=True)
class Recall:
    """Go on from the copy of the state after `steps` committed steps, in the shape of the number `shape`, that `keeper`
    holds; None: it is gone."""

    steps: int
    keeper: Keeper | None
    shape: int = 0


@dataclass(frozen=True)
class Copy:
    """Of the shard of `rank` in the shape of the number `shape`, that `keeper` gives ranges of at `address`."""

    shape: int
    rank: int
    keeper: str
    address: tuple[str, int]


@dataclass(frozen=True)
class Refill:
    """Fill a shard from what others hold of the state after `steps` committed steps. `numbers`: the shapes that these
    are shards of; `holders`: who hold some of them, all together all of it, and where each serves what it holds;
    `copies`: or who keep copies of those of one shape for others."""

    steps: int
    numbers: tuple[int, ...]
    holders: tuple[tuple[str, tuple[str, int]], ...]
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Form:
    """Build (again) the world of a cell, as its `rank` of `size`; load the checkpoint of `restore` steps if given, or
    (`keep`) go on from the state that was kept on leaving the former world, or (`recall`) from a copy, or (`refill`)
    from what others hold of other shapes. `mesh`: of the cell, None for the one that the job names; `shape`: number of
    the run's shape that it belongs to."""

    cell: int
    attempt: int
    rank: int
    size: int
    restore: int | None = None
    keep: bool = False
    recall: Recall | None = None
    mesh: Mesh | None = None
    shape: int = 0
    refill: Refill | None = None


@dataclass(frozen=True)
class Generation:
    """A new membership of `cells`, in ascending order, goes on from `steps`. Of the receiver's cell: `todo`: what is
    left for it of the step; `heals`: copies (from, to) that it has a part in. `save`: write a checkpoint before going
    on; `halt`: and do not go on. `crew`: everybody by cell and rank, if samples are audited. `mean`: seconds between
    two failures, by what is known of the run; `going`: nodes that will be taken away, and in how many seconds if that
    is known; `attempts`: which of its formations each of `cells` is; `draw`: a word that no other generation has."""

    generation: int
    cells: tuple[int, ...]
    steps: int
    evaluated: int
    todo: tuple[int, ...]
    heals: tuple[tuple[int, int], ...] = ()
    save: bool = False
    halt: bool = False
    crew: tuple[str, ...] = ()
    mean: float = 0.0
    going: Mapping[str, float | None] = field(default_factory=dict, hash=False)
    attempts: tuple[int, ...] = ()
    draw: str = ""


@dataclass(frozen=True)
class Stop:
    """Leave the generation at once and answer; if the cell is broken and the pending step's totals are not complete,
    leave its world too, so that peers blocked in it are freed; so with a world of another shape than `shape`, whose
    shard is asked after. `committed`: steps that the controller knows of."""

    generation: int
    broken: tuple[int, ...]
    committed: int
    shape: int = 0


@dataclass(frozen=True)
class Pause:
    """Leave the generation in order at the next boundary that all agree on (the vote carries it), and answer."""

    generation: int


@dataclass(frozen=True)
class CommitLate:
    """Somebody committed `steps`: commit it too, with what the vote said."""

    generation: int
    steps: int
    stats: tuple[float, ...]
    norm_sq: float
    takers: tuple[int, ...] = ()


@dataclass(frozen=True)
class CopyTo:
    """From now on copy snapshots to a keeper; to nobody if there is none."""

    keeper: Keeper | None


@dataclass(frozen=True)
class Fence:
    """End a worker of this node that is taken for dead; it may be the receiver."""

    pid: int
    worker: str


@dataclass(frozen=True)
class Profile:
    """Record the steps `first` to `last`; `memory`: what the device's memory holds, instead of what is done."""

    first: int
    last: int
    memory: bool = False


@dataclass(frozen=True)
class Published:
    """What the receiver said up to the word `number` is on record for whatever controller comes after this one."""

    number: int


Order = Form | Generation | Stop | Pause | CommitLate | CopyTo | Fence | Profile | Published | Values | Met | Closed
