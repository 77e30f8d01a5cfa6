"""The controller as Ray sees it: a detached, named actor around `Controller`, which lives in a thread of its own.

Ray starts it again when its process dies. It then finds the run's record and its living workers, and goes on.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray

from shoal.config import Job
from shoal.control.controller import Controller, controller_name
from shoal.control.fleet import RayFleet

__all__ = ["ControllerActor", "controller_name"]

GRACE = 3.0
"""Seconds that the actor stays after the end, for the driver to read the outcome."""


@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)
class ControllerActor:
    """Runs one job; see `Controller` for the arguments."""

    def __init__(
        self, job: dict[str, Any], rundir: str, seats: dict[tuple[int, int], str], start: int, about: dict[str, Any]
    ) -> None:
        again = ray.get_runtime_context().was_current_actor_reconstructed
        checked = Job.model_validate(job)
        self.fleet = RayFleet(checked.slot_resource)
        self.controller = Controller(self.fleet, checked, Path(rundir), seats, start, about, again=again)
        self.outcome: Future[tuple[str, str]] = Future()
        self.myself = ray.get_runtime_context().current_actor
        threading.Thread(target=self._run, daemon=True, name="controller").start()

    def __repr__(self) -> str:
        return controller_name(self.controller.run_id)

    def _run(self) -> None:
        try:
            outcome = asyncio.run(self.controller.run())
        except BaseException as error:
            outcome = ("failed", f"the controller failed: {type(error).__name__}: {error}")
            self.outcome.set_result(outcome)
            raise
        else:
            self.outcome.set_result(outcome)
        finally:
            self.fleet.close()
            # the driver may be gone, and nobody else would remove this actor
            threading.Timer(GRACE, ray.kill, (self.myself,)).start()

    async def wait(self) -> tuple[str, str]:
        """(status, reason) of the run, at its end."""
        return await asyncio.wrap_future(self.outcome)

    async def stop(self, reason: str) -> None:
        """End the run early, whatever it is doing."""
        self.controller.stop(reason)

    async def alive(self) -> int:
        """Its process id."""
        return os.getpid()
