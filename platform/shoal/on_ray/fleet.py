"""The controller's fleet on a Ray cluster: a worker is a detached, named actor that holds a slot."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray

from shoal.names import is_worker, node_of, run_of
from shoal.on_ray import NAMESPACE
from shoal.on_ray.drain import draining_nodes
from shoal.on_ray.nodes import on_node, within_reach
from shoal.on_ray.slots import Slot
from shoal.on_ray.worker_actor import WorkerActor
from shoal.plan import Node
from shoal.worker.setup import Meeting, Setup

__all__ = ["RayFleet", "all_workers", "find_actor"]

logger = logging.getLogger(__name__)
SETTLED = 3.0
"""Seconds after which Ray's count of free slots takes a worker that was asked for into account."""


def find_actor(name: str) -> Any:
    """The handle of a controller or worker; None if there is none of that name."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def all_workers() -> list[str]:
    """Names of all runs' workers that may be alive."""
    names = [str(actor["name"]) for actor in ray.util.list_named_actors(all_namespaces=True)]
    return [name for name in names if is_worker(name)]


def cause_of(error: str) -> str:
    """What Ray says of an actor's end, in one line: how its process ended, or what its constructor raised."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    process = [line for line in lines if line.startswith("The actor is dead because its worker process")]
    return (process or lines[-1:] or ["nothing is known of it"])[0]


class RayFleet:
    """A `shoal.control.fleet.Fleet` of the cluster that this process belongs to.

    Ray answers nothing while the head node is away, and then goes on where it stood: what is asked of it waits in a
    thread, in order.
    """

    def __init__(self, slot: Slot) -> None:
        self.address: str = ray.util.get_node_ip_address()
        self._slot = slot
        self._handles: dict[str, Any] = {}
        self._asked: dict[str, float] = {}
        """When (monotonic) each worker that may hold a slot was asked for."""
        self._orders = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fleet")

    def nodes(self) -> list[Node]:
        """The living nodes, with the slots that this run has or could have."""
        fresh = time.monotonic() - SETTLED
        mine = Counter(node_of(name) for name, asked in list(self._asked.items()) if asked < fresh)
        return within_reach(self._slot, mine)

    def draining(self) -> Mapping[str, float]:
        """Deadline (unix, s) of each living node that will be taken away, by `Node.ray_id`."""
        return draining_nodes()

    def spawn(self, setup: Setup, node: Node, died: Callable[[str], None]) -> None:
        """Start a worker on a node, soon. `died`: called with the reason if it dies before it is warm."""
        self._order(self._spawn, setup, node, died)

    def kill(self, name: str) -> None:
        """End a worker, soon."""
        self._order(self._kill, name)

    def kill_all(self, run_id: str) -> None:
        """End all workers of a run."""
        for name in self.workers(run_id):
            self.kill(name)

    def close(self) -> None:
        """Return when all that was ordered is done."""
        self._orders.shutdown()

    def workers(self, run_id: str) -> list[str]:
        """Names of a run's workers that may be alive."""
        return [name for name in all_workers() if run_of(name) == run_id]

    def rejoin(self, name: str, meeting: Meeting) -> bool:
        """Ask a living worker to speak to this controller from now on; False if it is gone."""
        handle = find_actor(name)
        if handle is None:
            return False
        self._handles[name], self._asked[name] = handle, 0.0
        handle.rejoin.remote(meeting)
        return True

    def _order(self, call: Callable[..., None], *arguments: Any) -> None:
        def carry_out() -> None:
            try:
                call(*arguments)
            except Exception as error:  # a worker that never speaks is given up in time, and asked for again
                logger.warning("%s failed: %s: %s", call.__name__, type(error).__name__, error)

        self._orders.submit(carry_out)

    def _spawn(self, setup: Setup, node: Node, died: Callable[[str], None]) -> None:
        logger.info("asking Ray for worker %s", setup.name)
        self._asked[setup.name] = time.monotonic()
        handle = self._handles[setup.name] = WorkerActor.options(  # type: ignore[attr-defined]
            name=setup.name,
            namespace=NAMESPACE,
            lifetime="detached",
            scheduling_strategy=on_node(node),
            **self._slot.options(),
        ).remote(setup)

        def warm(answer: Future[Any]) -> None:
            if error := answer.exception():
                died(f"its process ended before it was ready: {cause_of(str(error))}")

        handle.__ray_ready__.remote().future().add_done_callback(warm)

    def _kill(self, name: str) -> None:
        logger.info("ending worker %s", name)
        self._asked.pop(name, None)
        handle = self._handles.pop(name, None) or find_actor(name)
        if handle is not None:
            ray.kill(handle, no_restart=True)
