"""The driver's side of a run that exists: finding its controller, showing the run, telling it to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from shoal.cluster import join
from shoal.config import Job
from shoal.control.actor import controller_name
from shoal.control.fleet import NAMESPACE
from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.masking import flat_masked
from shoal_core.errors import UserError
from shoal_core.workload import ORIGIN

__all__ = ["connect", "follow", "leave", "running", "stop", "unfinished"]

PATIENCE = 60.0
"""Seconds from a run's last word until a driver stops waiting for its controller's (the report is written between)."""
UNHEARD = 3.0
"""Seconds after an order to end in which a controller that lives has written something (it does every second)."""
LET_GO = 1.5
"""Seconds for Ray to part from its cluster."""
Show = Callable[[str, dict[str, Any]], None]


def connect() -> None:
    """Join the cluster that this process belongs to or that RAY_ADDRESS names, unless that is done.

    Raises:
        UserError: there is none, it does not answer, or it wants another token.
    """
    join.connect(NAMESPACE)


def unfinished(job: Job) -> bool:
    """Whether there is a record of the job's run that says nothing of its end: the run goes on, or died."""
    if job.run_id is None:
        return False
    path = job.storage / job.run_id
    return (path / layout.EVENTS).exists() and not (path / layout.RUN).exists()


def running(job: Job) -> tuple[Any, Any] | None:
    """`(controller, its run's future)` of the job's run on the connected cluster, whose driver may have died.

    None: nobody runs it.
    Raises:
        UserError: it runs with other settings. Where it is mirrored to does not count.
    """
    try:
        controller = ray.get_actor(controller_name(str(job.run_id)), namespace=NAMESPACE)
    except ValueError:
        return None
    recorded = flat_masked(read.config(job.storage / str(job.run_id)))
    asked = flat_masked(job.model_dump(mode="json"))
    different = sorted(
        key
        for key in recorded.keys() | asked.keys()
        if recorded.get(key) != asked.get(key) and not key.startswith((f"workload.{ORIGIN}.", "mlflow."))
    )
    if different:
        raise UserError(
            f"run_id: {job.run_id!r} is running now, with other settings of {', '.join(different)}",
            f"leave them as they are to follow it, choose another run_id, or end it: shoal stop {job.run_id}",
        )
    return controller, controller.wait.remote()


class Orders:
    """Passes signals to end (Ctrl-C, `ray job stop`) on to a run's controller: the first asks it to save the state and
    end, the second to end at once, the third ends this driver. `given_up`: the controller is not heard of any more."""

    def __init__(self, controller: Any, path: Path) -> None:
        self._controller, self._path = controller, path
        self._names: list[str] = []
        self._sent = 0
        self._heard = 0.0
        self._written = 0.0
        self.given_up = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: object) -> None:
        """In the middle of anything: only note it."""
        self._names.append(signal.Signals(number).name)

    def look(self) -> None:
        """Send what is to be sent, and see whether anybody obeys."""
        now = time.monotonic()
        while self._sent < len(self._names):
            name = self._names[self._sent]
            self._sent += 1
            self._heard = now
            if self._sent == 1:
                say("the run was told to save its state and end; once more ends it at once")
            if self._sent > 2:
                self.given_up = True
            else:
                self._controller.stop.remote(f"stopped by {name}", save=self._sent == 1)
        if self._sent:
            written = max(_written(self._path / name) for name in (layout.STATUS, layout.EVENTS, layout.STEPS))
            if written != self._written:
                self._written, self._heard = written, now
            self.given_up = self.given_up or now - self._heard > UNHEARD


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def say(line: str) -> None:
    """A word of the driver itself, seen at once."""
    print(f"shoal: {line}", file=sys.stderr, flush=True)


def follow(controller: Any, outcome: Any, path: Path, show: Show) -> tuple[str, str]:
    """Show a run as it goes, until it ends; returns (status, reason). A signal to end ends the run in order (`Orders`);
    if its controller does not answer, the driver alone ends."""
    orders = Orders(controller, path)
    since = time.time() - 1.0

    def over() -> bool:
        orders.look()
        return orders.given_up or bool(ray.wait([outcome], timeout=0)[0])

    for kind, line in read.follow(path, since=since, stop=over):
        show(kind, line)
    deadline = time.monotonic() + PATIENCE
    while not (over() or time.monotonic() > deadline):
        time.sleep(0.1)
    if not ray.wait([outcome], timeout=0)[0]:
        return _on_record(path) or (
            "left",
            f"its controller does not answer: see `shoal status {path.name}`; what is left of it goes on by itself",
        )
    try:
        status, reason = ray.get(outcome)
    except ray.exceptions.RayActorError as error:  # another driver that followed the run was quicker, or it died
        resume = f"the controller died ({error}); go on with `shoal train ... --resume run_id={path.name}`"
        return _on_record(path) or ("failed", resume)
    ray.kill(controller)
    return str(status), str(reason)


def _on_record(path: Path) -> tuple[str, str] | None:
    """How the run ended, if its record says that it has."""
    ended = read_json(path / layout.RUN)
    return None if ended is None else (str(ended.get("status")), str(ended.get("reason")))


def leave(code: int) -> None:
    """Let go of the cluster. Where Ray does not come back from that (a cluster that is gone), the process ends here."""
    going = threading.Thread(target=ray.shutdown, daemon=True)
    going.start()
    going.join(LET_GO)
    if going.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def stop(run_id: str, *, now: bool) -> None:
    """Tell a run's controller to end it: once its state is saved, or `now`.

    Raises:
        UserError: no such run is running on this cluster, or its controller does not answer.
    """
    try:
        controller = ray.get_actor(controller_name(run_id), namespace=NAMESPACE)
    except ValueError as error:
        raise UserError(
            f"no run {run_id!r} is running on this cluster", "`shoal runs` lists those on record"
        ) from error
    try:
        ray.get(controller.stop.remote("stopped by `shoal stop`", save=not now), timeout=30)
    except ray.exceptions.GetTimeoutError as error:
        raise UserError(f"run {run_id}: its controller does not answer", f"see `shoal status {run_id}`") from error
    except ray.exceptions.RayActorError as error:
        raise UserError(f"run {run_id}: its controller has just ended", f"see `shoal status {run_id}`") from error
