"""What a controller asks of a cluster: nodes, and worker processes on them. `shoal.on_ray.fleet` asks Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from shoal.plan import Node
from shoal.worker.setup import Meeting, Setup

__all__ = ["Fleet"]


class Fleet(Protocol):
    """Nodes, and worker processes on them. `spawn` and `kill` return at once, whatever is the matter with the cluster;
    the other calls may take as long as its head node is away."""

    address: str
    """Where this controller listens."""

    def nodes(self) -> list[Node]:
        """The living nodes, with the slots that this run has or could have."""

    def draining(self) -> Mapping[str, float]:
        """Deadline (unix, s) of each living node that will be taken away, by `Node.ray_id`."""

    def spawn(self, setup: Setup, node: Node, died: Callable[[str], None]) -> None:
        """Start a worker on a node. `died`: to be called in any thread, with the reason, if it is found to have died
        before it was warm."""

    def kill(self, name: str) -> None:
        """End a worker at once; one that is gone already is no error."""

    def workers(self, run_id: str) -> list[str]:
        """Names of a run's workers that may be alive."""

    def rejoin(self, name: str, meeting: Meeting) -> bool:
        """Ask a living worker to speak to this controller from now on; False if it is gone."""
