"""A driver's hold on a run: its controller's actor, asked to end the run, and how the run ended."""

from __future__ import annotations

from typing import Any

import ray

from shoal.driver import ControllerDied
from shoal.names import controller_name
from shoal.on_ray.fleet import find_actor
from shoal_core.errors import UserError

__all__ = ["RayRun", "find_run", "order_stop"]

ANSWER = 30.0
"""Seconds for a controller to take an order."""


class RayRun:
    """A `shoal.driver.Run` whose controller is the actor `controller`."""

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._outcome = controller.wait.remote()

    def stop(self, reason: str, *, save: bool) -> None:
        """Tell the controller to end the run, with `save` once its state is saved. Returns at once."""
        self._controller.stop.remote(reason, save=save)

    def over(self) -> bool:
        """Whether the controller has said how the run ended, or died."""
        return bool(ray.wait([self._outcome], timeout=0)[0])

    def outcome(self) -> tuple[str, str]:
        """(status, reason) of the run that is over; its controller is needed no more.

        Raises:
            ControllerDied: nobody can say: another driver was quicker, or it died.
        """
        try:
            status, reason = ray.get(self._outcome)
        except ray.exceptions.RayActorError as error:
            raise ControllerDied(str(error)) from error
        ray.kill(self._controller)
        return str(status), str(reason)


def find_run(run_id: str) -> RayRun | None:
    """The run of that id on the connected cluster; None if nobody runs it."""
    controller = find_actor(controller_name(run_id))
    return None if controller is None else RayRun(controller)


def order_stop(run_id: str, reason: str, *, save: bool) -> None:
    """Tell a run's controller to end it, with `save` once its state is saved, and wait until it has heard.

    Raises:
        UserError: no such run is running on this cluster, or its controller does not answer.
    """
    controller = find_actor(controller_name(run_id))
    if controller is None:
        raise UserError(f"no run {run_id!r} is running on this cluster", "`shoal runs` lists those on record")
    look = f"see `shoal status {run_id}`"
    try:
        ray.get(controller.stop.remote(reason, save=save), timeout=ANSWER)
    except ray.exceptions.GetTimeoutError as error:
        raise UserError(f"run {run_id}: its controller does not answer", look) from error
    except ray.exceptions.RayActorError as error:
        raise UserError(f"run {run_id}: its controller has just ended", look) from error
