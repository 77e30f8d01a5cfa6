"""The modes that a run can be in, and what is known only while it is in one of them.

A generation is a membership. `Running` begins it; `Pausing` or `Stopping` end it, in order or at once, and last until
everybody alive has answered. Then the next one runs, or, when no cell is whole, the run is `Gathering` again. `Ended`
is final.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from shoal.protocol.said import Ack

__all__ = ["Ended", "Gathering", "Halt", "Mode", "Pausing", "Running", "Status", "Stopping"]

Status = Literal["done", "failed", "stopped"]


@dataclass
class Gathering:
    """No generation: workers come, and cells are formed of them.

    `held`: rank of the shard that a worker still holds at the committed step, since no cell is whole any more;
    `combines`: the first cell is formed of them;
    `recalled`: steps of the copies from which the first cell is formed. Without either it is formed from a checkpoint;
    `damaged`: it was found to be, and is being set aside: nothing is formed until an older one is known; `filled`: the
    cells take another shape, and this is the rank of the shard that each worker has filled from those of the former;
    `tried`: who held something when that was last begun though no shape was whole; `since`: when it was first seen that
    no cell can be formed of those who live.
    """

    held: dict[str, int] = field(default_factory=dict)
    combines: bool = False
    recalled: int | None = None
    damaged: bool = False
    filled: dict[str, int] | None = None
    tried: frozenset[str] = frozenset()
    since: float | None = None

    def copy(self) -> Gathering:
        filled = None if self.filled is None else dict(self.filled)
        return replace(self, held=dict(self.held), filled=filled)


@dataclass
class Running:
    """The cells `live` train. `finished`: workers that are through."""

    live: tuple[int, ...]
    finished: set[str] = field(default_factory=set)

    def copy(self) -> Running:
        return replace(self, finished=set(self.finished))


@dataclass
class Pausing:
    """The generation ends at the next step boundary. `leaving`: cells that end in order with it: a successor takes
    over, or they are formed again elsewhere; `reshapes`: all of them may take another shape. `acks`: who has answered,
    and how; `awaited`: who is still to answer."""

    live: tuple[int, ...]
    finished: set[str]
    leaving: frozenset[int]
    awaited: set[str]
    acks: dict[str, Ack] = field(default_factory=dict)
    reshapes: bool = False

    def copy(self) -> Pausing:
        return replace(self, finished=set(self.finished), awaited=set(self.awaited), acks=dict(self.acks))


@dataclass
class Stopping:
    """The generation ends at once. `leaving`, `acks`, `awaited`: as in a pause; `broken`: cells whose world is
    unusable; `since`: when the watch first saw that answers are owed."""

    live: tuple[int, ...]
    leaving: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    awaited: set[str] = field(default_factory=set)
    acks: dict[str, Ack] = field(default_factory=dict)
    since: float | None = None

    def copy(self) -> Stopping:
        return replace(self, awaited=set(self.awaited), acks=dict(self.acks))


@dataclass(frozen=True)
class Ended:
    """The run is over."""

    status: Status
    reason: str

    def copy(self) -> Ended:
        return self


Mode = Gathering | Running | Pausing | Stopping | Ended


@dataclass(frozen=True)
class Halt:
    """Why a run cannot go on: what is left to do is to save its state. `status`: what it ends as; `by_controller`: the
    controller's own code or disk failed, and no worker."""

    reason: str
    status: Literal["failed", "stopped"] = "failed"
    by_controller: bool = False
