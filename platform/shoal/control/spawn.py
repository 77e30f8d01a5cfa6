"""Which workers to start, and what became of those that were asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial

from shoal.control.fleet import Fleet
from shoal.names import node_of, seat_name, spare_name, spare_number
from shoal.plan import Mesh, Node, Seat, spare_slots
from shoal.worker.setup import Meeting, Setup

__all__ = ["Spawner", "spares_wanted"]

logger = logging.getLogger(__name__)


def spares_wanted(
    nodes: Iterable[Node],
    seated: Iterable[str],
    idle: Iterable[str],
    seats: int,
    spares: int | None,
    avoid: Collection[str] = (),
) -> list[str]:
    """Nodes on which to start one more worker each, so that the run holds `seats` + `spares` of them.

    `seated`, `idle`: nodes of its workers with and without a seat, living or starting; `avoid`: nodes to be taken only
    if there is no room on others.
    """
    nodes = list(nodes)
    sites = {node.name: node.site for node in nodes}
    slots = {node.name: node.slots for node in nodes}
    seated, idle = list(seated), list(idle)
    total = None if spares is None else max(0, seats + spares - len(seated))
    better = {name: n for name, n in slots.items() if name not in avoid}
    return spare_slots(better, seated, total, idle, sites.__getitem__) or spare_slots(
        slots, seated, total, idle, sites.__getitem__
    )


@dataclass
class Started:
    """A worker that was asked for. `since`: monotonic time; `heard`: it has said its first word."""

    node: str
    since: float
    heard: bool = False


class Spawner:
    """Asks the fleet for workers and fences them. `died`: called in any thread with (worker, why) when the fleet finds
    that one it started is gone."""

    def __init__(
        self,
        fleet: Fleet,
        setup: Callable[[str, str, Seat | None], Setup],
        died: Callable[[str, str], None],
        run_id: str,
        mesh: Mesh,
    ) -> None:
        self._fleet, self._setup, self._died, self._run_id, self._mesh = fleet, setup, died, run_id, mesh
        self._spares = 0
        self.started: dict[str, Started] = {}

    def spawn(self, node: Node, seat: Seat | None) -> str:
        """Start a worker on `node`, for `seat` or as a spare; returns its name."""
        if seat is None:
            self._spares += 1
            name = spare_name(self._run_id, self._spares, node.name)
        else:
            name = seat_name(self._run_id, seat, self._mesh, node.name)
        self._fleet.spawn(self._setup(name, node.name, seat), node, partial(self._died, name))
        self.started[name] = Started(node.name, time.monotonic())
        return name

    def adopt(self, meeting: Meeting) -> list[str]:
        """Ask living workers that a former controller started to speak to this one; returns those that are there."""
        found = []
        for name in self._fleet.workers(self._run_id):
            self._spares = max(self._spares, spare_number(name) or 0)
            self.started[name] = Started(node_of(name), time.monotonic())  # before it can answer
            if self._fleet.rejoin(name, meeting):
                found.append(name)
            else:
                del self.started[name]
        return found

    def kill(self, name: str) -> None:
        """Fence a worker; one that is gone already is no error. What follows from its end waits for no order that
        could not be given."""
        if self.started.pop(name, None) is not None:
            try:
                self._fleet.kill(name)
            except Exception as error:
                logger.warning("%s could not be told to end: %s: %s", name, type(error).__name__, error)

    def cold_spares(self) -> list[str]:
        """Spares that were asked for and have not said a word yet."""
        return [name for name, one in self.started.items() if not one.heard and spare_number(name) is not None]

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
