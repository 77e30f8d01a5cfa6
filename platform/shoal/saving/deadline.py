"""What is done before nodes go that no other copy of the state can take over from: by bytes, speeds and seconds. Pure.

A checkpoint is whole or none, so those that go either write all that only they hold, in time, or nothing of it: then
their links are free for the copies in the memory of nodes that stay. What others hold too is written by those that
stay. All ranks decide by the same words, and so the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from shoal_core.units import size

__all__ = ["Choice", "Notice", "Speed", "choose", "in_words", "steps_until_last", "weights"]

SPEED = 200e6
"""Bytes a second that a rank writes or copies, before this run has seen any."""
CAREFUL = 1.5
"""How many times as long as by the speed that was measured a save may take."""
CLOSING = 1.0
"""Seconds before a deadline in which no rank has anything left to write: then index and marker are."""

Way = Literal["save", "copies", "checkpoint"]


@dataclass
class Speed:
    """At which this process writes to the storage, or copies to another's memory: as the slowest of the last times."""

    _seen: deque[float] = field(default_factory=lambda: deque(maxlen=3))

    def took(self, size: int, seconds: float) -> None:
        """So many bytes of this rank took so long."""
        if size > 0:
            self._seen.append(size / max(seconds, 1e-6))

    @property
    def bytes(self) -> float:
        """A second."""
        return min(self._seen, default=SPEED)


@dataclass(frozen=True)
class Notice:
    """What a rank of a cell says before a save, if nodes of the cell are about to go. `left`: seconds until its own
    does; none: it stays, or nobody knows when. `speed`: bytes a second that it writes; `copies`: that it copies to the
    memory of a node that stays, 0 if to none."""

    going: bool
    left: float | None = None
    speed: float = SPEED
    copies: float = 0.0

    def told(self) -> dict[str, Any]:
        """For other ranks, in JSON."""
        return asdict(self)

    @property
    def fits(self) -> float:
        """Bytes that it surely writes before it goes."""
        return self._time * self.speed

    def kept(self, held: int) -> bool:
        """Whether a copy of what it holds surely outlives its node."""
        return held <= self._time * self.copies if self.copies else False

    @property
    def _time(self) -> float:
        return math.inf if self.left is None else max(0.0, self.left - CLOSING) / CAREFUL


def weights(notices: Sequence[Notice]) -> dict[int, float]:
    """How much each rank that goes is given of what only such ranks hold: as much more as fits more."""
    fits = {rank: notice.fits for rank, notice in enumerate(notices) if notice.going}
    return {rank: 1.0 if math.inf in fits.values() else size for rank, size in fits.items()}


@dataclass(frozen=True)
class Choice:
    """`way`: the state is saved, or what counts is the `copies` in memory or the last `checkpoint`. `alone`: bytes that
    only those that go hold; `fits`: of them, what can be written before; `left`: seconds until the first of those goes
    that have to write; `seconds`: that writing takes, as measured."""

    way: Way
    alone: int
    fits: int
    left: float | None
    seconds: float

    def told(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)


def choose(notices: Sequence[Notice], written: Sequence[int], held: Sequence[int]) -> Choice:
    """written: bytes that each rank would write, those that go only of what nobody else holds (`ckpt.pieces.deal`);
    held: that each has."""
    going = [(notice, size) for notice, size in zip(notices, written, strict=True) if notice.going and size]
    fits = [int(min(size, notice.fits)) for notice, size in going]
    alone = sum(size for _, size in going)
    left = min((notice.left for notice, _ in going if notice.left is not None), default=None)
    seconds = max((size / notice.speed for notice, size in going), default=0.0)
    kept = all(notice.kept(size) for notice, size in zip(notices, held, strict=True))
    way: Way = "save" if sum(fits) == alone else "copies" if kept else "checkpoint"
    return Choice(way, alone, sum(fits), left, seconds)


def steps_until_last(left: float, written: float, step: float) -> int | None:
    """Steps from one save to another before the node goes: as late as it surely fits, so that the least is lost. None:
    there is no time for another. left: seconds from the first save's beginning; written: until that was whole; step:
    seconds of one."""
    time = left - CAREFUL * written - CLOSING - step  # it is begun between steps
    steps = math.floor(time / max(step, 1e-9))
    return steps if time > written and steps > 0 else None


def in_words(event: Mapping[str, Any]) -> str:
    """A choice as it stands in the journal."""
    alone, fits = event["alone"], event["fits"]
    time = f"the {event['left']:.0f} s that are left"
    if event["way"] == "save":
        what = f"of {size(alone)} that only nodes which go hold, {size(fits)} fit into {time}"
        return f"{what}: the state of step {event['step']} is saved (about {event['seconds']:.1f} s)"
    what = f"{size(alone - fits)} of {size(alone)} that only nodes which go hold do not fit into {time}"
    counts = f"the checkpoint of step {event['checkpoint']} counts" if event["checkpoint"] else "nothing is saved"
    if event["way"] == "copies":
        return f"{what}: the copies in the memory of nodes that stay count; without them {counts}"
    return f"{what}, and nobody who stays has copies: {counts}"
