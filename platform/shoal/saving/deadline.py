"""What is saved by whom when nodes are about to be taken away. Pure.

Those that go write what nobody else holds, as far as their time goes; whatever a survivor holds too, survivors write.
The survivors wait for those that go and commit what is there: all of it, or nothing that is believed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Salvage", "Shard", "salvage"]

MARGIN = 0.8
"""Part of the time until the deadline that is counted on."""


@dataclass(frozen=True)
class Shard:
    """A part of the state, of so many bytes, that the workers `holders` have."""

    name: str
    bytes: int
    holders: frozenset[int]


@dataclass(frozen=True)
class Salvage:
    """`writes`: shards by the worker that writes them; `left`: those that nobody can save in time."""

    writes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    left: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all of the state can be saved."""
        return not self.left


def salvage(shards: Iterable[Shard], going: Collection[int], seconds: float, speed: float) -> Salvage:
    """Share out a state. going: workers that are gone after `seconds`; speed: bytes a second that a worker writes.

    Each shard is written once, by whoever has least to write of those that may.
    """
    room = max(0.0, seconds) * MARGIN * max(0.0, speed)
    load: dict[int, int] = {}
    writes: dict[int, list[str]] = {}
    left = []
    gone = frozenset(going)
    # what only those that go have comes first, and of that what is largest: small ones find a place behind it
    for shard in sorted(shards, key=lambda one: (bool(one.holders - gone), -one.bytes, one.name)):
        may = shard.holders - gone or {one for one in shard.holders if load.get(one, 0) + shard.bytes <= room}
        if not may:
            left.append(shard.name)
            continue
        worker = min(may, key=lambda one: (load.get(one, 0), one))
        load[worker] = load.get(worker, 0) + shard.bytes
        writes.setdefault(worker, []).append(shard.name)
    return Salvage({worker: tuple(names) for worker, names in sorted(writes.items())}, tuple(left))
