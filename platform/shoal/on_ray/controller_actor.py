"""The controller as Ray sees it: a detached, named actor around `Controller`, which lives in a thread of its own.

Ray starts it again when its process dies. It then finds the run's record and its living workers, and goes on. An
exception of its own ends the run with that reason: to start again would meet it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray

from shoal import log
from shoal.config import Job
from shoal.control.controller import Controller
from shoal.control.finish import bury
from shoal.names import controller_name
from shoal.on_ray.autoscaler import RayAutoscaler
from shoal.on_ray.board import Board
from shoal.on_ray.callbacks import Callbacks
from shoal.on_ray.fleet import RayFleet
from shoal.on_ray.metrics import RunMetrics
from shoal.on_ray.parts import whole
from shoal.on_ray.slots import Slot
from shoal.on_ray.train_state import Myself, TrainState
from shoal.on_ray.views import View, Views
from shoal.record.lease import Held
from shoal.record.place import own_folder
from shoal_core.store import join, local_folder

__all__ = ["ControllerActor"]

logger = logging.getLogger(__name__)
GRACE = 3.0
"""Seconds that the actor stays after the end, for the driver to read the outcome."""
TOLD = 5.0
"""Seconds at the end of a run for Ray to take how it ended, and as many for callbacks to hear of it."""


@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)
class ControllerActor:
    """Runs one job; see `Controller` for what is known of it. `credentials`: variables of the environment by which the
    mirror to MLflow is let in, and that the hooks of `notify` need; `callbacks`: `shoal.on_ray.callbacks.packed`;
    `known`: `parted` of `job`, `seats` (cell, rank, node of each), `start` and `about`."""

    def __init__(self, credentials: dict[str, str], session: str, callbacks: bytes, *known: bytes) -> None:
        os.environ.update(credentials)
        given = whole(known)
        job, start, about = given["job"], given["start"], given["about"]
        seats = {(cell, rank): node for cell, rank, node in given["seats"]}
        self.run_id = str(job.get("run_id"))
        place = join(str(job.get("storage")), self.run_id)
        self.rundir = local_folder(place) or own_folder(place)
        self.again = ray.get_runtime_context().was_current_actor_reconstructed
        self.myself = ray.get_runtime_context().current_actor
        self.controller: Controller | None = None
        self.outcome: Future[tuple[str, str]] = Future()
        log.begin(controller_name(self.run_id), self._committed, least=str(job.get("log", "info")))
        logger.info("the controller begins%s", ", where another one died" if self.again else "")
        arguments = (job, seats, start, about, session, callbacks)
        threading.Thread(target=self._run, args=arguments, daemon=True, name="controller").start()

    def __repr__(self) -> str:
        """What Ray's dashboard shows the actor as: also by what one watches the run."""
        return f"{controller_name(self.run_id)} (shoal dashboard {self.run_id})"

    def _run(
        self,
        job: dict[str, Any],
        seats: dict[tuple[int, int], str],
        start: int,
        about: dict[str, Any],
        session: str,
        callbacks: bytes,
    ) -> None:
        fleet: RayFleet | None = None
        checked: Job | None = None
        watchers: list[Views | Callbacks] = []
        try:
            slot = Slot.of(Job.model_construct(**job))
            fleet = RayFleet(slot)  # which ends the workers of a job that cannot be checked, too
            checked = Job.model_validate(job)
            listeners, autoscaler = (RunMetrics(self.run_id),), RayAutoscaler(self.run_id, slot)
            arguments = (fleet, checked, self.rundir, seats, start, about)
            self.controller = Controller(
                *arguments, again=self.again, session=session, listeners=listeners, autoscaler=autoscaler
            )
            watchers = self._watchers(checked, session, callbacks)
            outcome = asyncio.run(self.controller.run())
        except Held as error:  # the record is another's: not a word goes into it
            outcome = ("failed", str(error))
            if fleet is not None:
                fleet.kill_all(self.run_id)
        except BaseException as error:
            logger.exception("the controller failed")
            outcome = ("failed", f"the controller failed: {type(error).__name__}: {error}")
            publisher = None if self.controller is None else self.controller.publisher
            bury(self.rundir, controller_name(self.run_id), outcome, error, publisher, checked)
            if fleet is not None:
                fleet.kill_all(self.run_id)
        logger.info("the run ended: %s (%s)", *outcome)
        for watcher in watchers:
            watcher.close(TOLD)
        self.outcome.set_result(outcome)
        if fleet is not None:
            fleet.close()
        if self.controller is not None and self.controller.lease.succeeded:
            threading.Timer(GRACE, os._exit, (0,)).start()  # the actor is the other controller by now
            return
        # the driver may be gone, and nobody else would remove this actor
        threading.Timer(GRACE, ray.kill, (self.myself,)).start()

    def _watchers(self, job: Job, session: str, callbacks: bytes) -> list[Views | Callbacks]:
        """What reads the run's record from now on: what Ray shows of it, and the user's callbacks."""
        kinds: dict[str, Callable[[], View]] = {
            "Train state": lambda: TrainState(job, session, Myself()),
            "Train board": lambda: Board(self.run_id, session),
        }
        found: list[Views | Callbacks] = [Views(self.rundir, kinds, since=0.0 if self.again else time.time())]
        if callbacks:
            found.append(Callbacks(callbacks, self.rundir, session, again=self.again, journal=self._journal))
        for one in found:
            one.start()
        return found

    def _journal(self, kind: str, **fields: Any) -> None:
        if self.controller is not None and self.controller.loop is not None:
            self.controller.later(partial(self.controller.event, kind, **fields))

    def _committed(self) -> int:
        return -1 if self.controller is None else self.controller.state.committed

    async def _living(self) -> Controller | None:
        """The controller, once it lives; None if it is over or never will."""
        while not self.outcome.done():
            if self.controller is not None and self.controller.loop is not None:
                return self.controller
            await asyncio.sleep(0.05)
        return None

    async def wait(self) -> tuple[str, str]:
        """(status, reason) of the run, at its end."""
        return await asyncio.wrap_future(self.outcome)

    async def stop(self, reason: str, save: bool = False) -> None:
        """End the run early, whatever it is doing; with `save`, once its state is saved."""
        if controller := await self._living():
            controller.stop(reason, save=save)

    async def give_up_spares(self, count: int, to: str) -> int:
        """Give up to `count` idle spares up to the run `to`. Returns how many it were."""
        controller = await self._living()
        if controller is None or controller.loop is None:
            return 0
        given = asyncio.run_coroutine_threadsafe(controller.give_up_spares(count, to), controller.loop)
        return await asyncio.wrap_future(given)

    async def alive(self) -> int:
        """Its process id."""
        return os.getpid()
