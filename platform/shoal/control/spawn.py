"""Which workers to start, and what became of those that were asked for."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shoal.control.fleet import Fleet
from shoal.plan import Node, Seat, spare_slots
from shoal.worker.main import Meeting, Setup

__all__ = ["Spawner", "node_of", "seat_name", "spares_wanted"]


def seat_name(run_id: str, seat: Seat, node: str) -> str:
    return f"{run_id}/cell{seat.cell}/stage0/shard{seat.rank}@{node}"


def node_of(worker: str) -> str:
    """The node in a worker's name."""
    return worker.rpartition("@")[2]


def spares_wanted(
    nodes: Iterable[Node], others: Mapping[str, int], held: Iterable[str], seats: int, spares: int | None
) -> list[str]:
    """Nodes on which to start one more worker each, so that the run holds `seats` + `spares` of them.

    `others`: slots that other runs hold, by node; `held`: nodes of this run's workers, living or starting.
    """
    held = list(held)
    slots = {node.name: node.slots - others.get(node.name, 0) for node in nodes if not node.draining}
    room = None if spares is None else max(0, seats + spares - len(held))
    return spare_slots(slots, held, room)


@dataclass
class Started:
    """A worker that was asked for. `since`: monotonic time; `heard`: it has said its first word."""

    node: str
    since: float
    heard: bool = False


class Spawner:
    """Asks the fleet for workers and fences them."""

    def __init__(self, fleet: Fleet, setup: Callable[[str, str, Seat | None], Setup], run_id: str) -> None:
        self._fleet, self._setup, self._run_id = fleet, setup, run_id
        self._spares = 0
        self.started: dict[str, Started] = {}

    def spawn(self, node: Node, seat: Seat | None) -> str:
        """Start a worker on `node`, for `seat` or as a spare; returns its name."""
        if seat is None:
            self._spares += 1
            name = f"{self._run_id}/spare{self._spares}@{node.name}"
        else:
            name = seat_name(self._run_id, seat, node.name)
        self._fleet.spawn(self._setup(name, node.name, seat), node)
        self.started[name] = Started(node.name, time.monotonic())
        return name

    def adopt(self, meeting: Meeting) -> list[str]:
        """Ask living workers that a former controller started to speak to this one; returns those that are there."""
        found = []
        for name in self._fleet.workers(self._run_id):
            number = re.search(r"/spare(\d+)@", name)
            self._spares = max(self._spares, int(number[1]) if number else 0)
            self.started[name] = Started(node_of(name), time.monotonic())  # before it can answer
            if self._fleet.rejoin(name, meeting):
                found.append(name)
            else:
                del self.started[name]
        return found

    def kill(self, name: str) -> None:
        """Fence a worker; one that is gone already is no error."""
        if self.started.pop(name, None) is not None:
            self._fleet.kill(name)

    def late(self, limit: float, alive: set[str]) -> list[tuple[str, str]]:
        """(worker, why) of those that have not said a word and will not."""
        now = time.monotonic()
        found = []
        for name, one in self.started.items():
            if not one.heard and one.node not in alive:
                found.append((name, f"{one.node} is gone"))
            elif not one.heard and now - one.since > limit:
                found.append((name, f"it did not start within {limit:.0f} s"))
        return found

    def held(self) -> Counter[str]:
        return Counter(one.node for one in self.started.values())
