"""Starting workers: which, where, and the Ray calls that do it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.nodes import on_node
from shoal.plan import Node, Seat, spare_slots
from shoal.worker.actor import Setup, WorkerActor

__all__ = ["NAMESPACE", "Spawner", "seat_name", "spares_wanted"]

NAMESPACE = "shoal"
"""Ray namespace of controllers and workers."""


def seat_name(run_id: str, seat: Seat, node: str) -> str:
    return f"{run_id}/cell{seat.cell}/stage0/shard{seat.rank}@{node}"


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
    handle: Any
    since: float
    heard: bool = False


class Spawner:
    """Asks Ray for workers and fences them."""

    def __init__(self, setup: Callable[[str, str, Seat | None], Setup], run_id: str, slot_resource: str) -> None:
        self._setup, self._run_id, self._slot = setup, run_id, slot_resource
        self._spares = 0
        self.started: dict[str, Started] = {}

    def spawn(self, node: Node, seat: Seat | None) -> str:
        """Start a worker on `node`, for `seat` or as a spare; returns its name."""
        if seat is None:
            self._spares += 1
            name = f"{self._run_id}/spare{self._spares}@{node.name}"
        else:
            name = seat_name(self._run_id, seat, node.name)
        handle = WorkerActor.options(  # type: ignore[attr-defined]
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            resources={self._slot: 1},
            scheduling_strategy=on_node(node),
        ).remote(self._setup(name, node.name, seat))
        self.started[name] = Started(node.name, handle, time.monotonic())
        return name

    def kill(self, name: str) -> None:
        """Fence a worker; one that is gone already is no error."""
        import ray

        started = self.started.pop(name, None)
        if started is not None:
            ray.kill(started.handle, no_restart=True)

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
