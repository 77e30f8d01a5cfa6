"""A cluster that is not there, for the controller: what was asked of it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shoal.plan import Node
from shoal.worker.setup import Meeting, Setup

__all__ = ["FakeFleet"]


class FakeFleet:
    """See `shoal.control.fleet.Fleet`, and what its actor asks of one beside. `there`: the living nodes; `going`: the
    deadline of each that will be taken away, by `Node.ray_id`."""

    address = "127.0.0.1"

    def __init__(self, there: Sequence[Node] = (), going: Mapping[str, float] | None = None) -> None:
        self.there, self.going = list(there), dict(going or {})
        self.spawned: list[tuple[str, str]] = []
        """(worker, node)."""
        self.killed: list[str] = []
        self.runs_ended: list[str] = []

    def nodes(self) -> list[Node]:
        return list(self.there)

    def draining(self) -> Mapping[str, float]:
        return self.going

    def spawn(self, setup: Setup, node: Node, died: Callable[[str], None]) -> None:
        self.spawned.append((setup.name, node.name))

    def kill(self, name: str) -> None:
        self.killed.append(name)

    def workers(self, run_id: str) -> list[str]:
        return [name for name, _ in self.spawned if name not in self.killed]

    def rejoin(self, name: str, meeting: Meeting) -> bool:
        return name not in self.killed

    def kill_all(self, run_id: str) -> None:
        self.runs_ended.append(run_id)

    def close(self) -> None:
        pass
