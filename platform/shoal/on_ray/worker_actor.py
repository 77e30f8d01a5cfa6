"""The Ray actor that owns one slot: it holds a worker and keeps out of its way.

Ray places it and shows it in the dashboard; orders and signs of life travel over the lifeline. It never restarts by
itself (`max_restarts=0`): an actor that comes back empty is of no use, the controller decides what follows a death.
"""

from __future__ import annotations

import ray

from shoal.worker.main import Worker
from shoal.worker.setup import Meeting, Setup

__all__ = ["WorkerActor"]


@ray.remote(max_restarts=0, max_task_retries=0)
class WorkerActor:
    """One worker; its `repr` is its name, so that the dashboard reads like a map. It is made once it is warm, so that
    whoever made it learns of a process that ends before, however it ends."""

    def __init__(self, setup: Setup) -> None:
        self._name = setup.name
        self._worker = Worker(setup, ray.util.get_node_ip_address())
        self._worker.warm.wait()

    def __repr__(self) -> str:
        return self._name

    def rejoin(self, meeting: Meeting) -> None:
        """A controller that came back asks this worker to go on under it."""
        self._worker.rejoin(meeting)
