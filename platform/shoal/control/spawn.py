"""Which workers to start, and what became of those that were asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from shoal.control.fleet import Fleet
from shoal.decisions.events import Asked
from shoal.names import node_of, seat_name, spare_name, spare_number
from shoal.plan import Mesh, Node, Seat
from shoal.worker.setup import Meeting, Setup

__all__ = ["Spawner", "Started"]

logger = logging.getLogger(__name__)


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
        self._unheard: set[str] = set()

    def spawn(self, node: Node, seat: Seat | None) -> str:
        """Start a worker on `node`, for `seat` or as a spare; returns its name."""
        if seat is None:
            self._spares += 1
            name = spare_name(self._run_id, self._spares, node.name)
        else:
            name = seat_name(self._run_id, seat, self._mesh, node.name)
        self._fleet.spawn(self._setup(name, node.name, seat), node, partial(self._died, name))
        self.started[name] = Started(node.name, time.monotonic())
        self._unheard.add(name)
        return name

    def adopt(self, meeting: Meeting) -> list[str]:
        """Ask living workers that a former controller started to speak to this one; returns those that are there."""
        found = []
        for name in self.living():
            self._spares = max(self._spares, spare_number(name) or 0)
            self.started[name] = Started(node_of(name), time.monotonic())  # before it can answer
            self._unheard.add(name)
            if self._fleet.rejoin(name, meeting):
                found.append(name)
            else:
                self._unheard.discard(name)
                del self.started[name]
        return found

    def living(self) -> list[str]:
        """Workers of the run that the fleet knows of, whoever started them."""
        return self._fleet.workers(self._run_id)

    def kill(self, name: str, grace: float = 0.0) -> None:
        """Fence a worker, after `grace` seconds; one that is gone already is no error. What follows from its end waits
        for no order that could not be given."""
        self._unheard.discard(name)
        if self.started.pop(name, None) is None:
            return
        if grace:
            asyncio.get_running_loop().call_later(grace, self._kill, name)
        else:
            self._kill(name)

    def _kill(self, name: str) -> None:
        try:
            self._fleet.kill(name)
        except Exception as error:
            logger.warning("%s could not be told to end: %s: %s", name, type(error).__name__, error)

    def spoke(self, name: str) -> None:
        """A worker has said its first word."""
        self.started[name].heard = True
        self._unheard.discard(name)

    def unheard(self) -> dict[str, str]:
        """Workers that were asked for and have not said a word -> node."""
        return {name: self.started[name].node for name in sorted(self._unheard)}

    def asked(self, now: float, nodes: Collection[str]) -> list[Asked]:
        """The same, and for how long; `nodes`: that live."""
        found = ((name, self.started[name]) for name in sorted(self._unheard))
        return [Asked(name, one.node, now - one.since, one.node in nodes) for name, one in found]

    def cold_spares(self) -> list[str]:
        """Spares among them."""
        return [name for name in sorted(self._unheard) if spare_number(name) is not None]
