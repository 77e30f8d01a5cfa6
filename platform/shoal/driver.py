"""The driver's side of a run that exists: showing it, and telling it to end. `shoal.on_ray.handle` speaks to it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from shoal.config import Job
from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.masking import flat_masked
from shoal.record.place import address_of, followed, local_record
from shoal_core.errors import UserError
from shoal_core.store import local_folder
from shoal_core.workload import ORIGIN

__all__ = ["ControllerDied", "Orders", "Run", "check_same", "follow", "log_of", "unfinished"]

PATIENCE = 60.0
"""Seconds from a run's last word until a driver stops waiting for its controller's (the report is written between)."""
UNHEARD, UNPUBLISHED = 3.0, 30.0
"""Seconds after an order to end in which a controller that lives has written something (it does every second), and in
which its store has that."""
Show = Callable[[str, dict[str, Any]], None]


class ControllerDied(Exception):
    """Whoever knew how the run ended is gone."""


class Run(Protocol):
    """What a driver asks of the controller of a run."""

    def stop(self, reason: str, *, save: bool) -> None:
        """Tell it to end the run, with `save` once its state is saved. Returns at once."""

    def over(self) -> bool:
        """Whether it has said how the run ended, or died. Returns at once."""

    def outcome(self) -> tuple[str, str]:
        """(status, reason) of the run that is over; its controller is needed no more.

        Raises:
            ControllerDied: nobody can say: another driver was quicker, or it died.
        """


def unfinished(job: Job) -> bool:
    """Whether there is a record of the job's run that says nothing of its end: the run goes on, or died."""
    if job.run_id is None:
        return False
    path = local_record(job.place)
    return (path / layout.EVENTS).exists() and not (path / layout.RUN).exists()


def check_same(job: Job) -> None:
    """Check that the job is the one that its run, which is running, was started with.

    Raises:
        UserError: it runs with other settings. Where it is mirrored to, and who is told, does not count.
    """
    recorded = flat_masked(read.config(local_record(job.place)))
    asked = flat_masked(job.model_dump(mode="json"))
    different = sorted(
        key
        for key in recorded.keys() | asked.keys()
        if recorded.get(key) != asked.get(key) and not key.startswith((f"workload.{ORIGIN}.", "mlflow.", "notify"))
    )
    if different:
        raise UserError(
            f"run_id: {job.run_id!r} is running now, with other settings of {', '.join(different)}",
            f"leave them as they are to follow it, choose another run_id, or end it: shoal stop {job.run_id}",
        )


def log_of(path: Path) -> str:
    """The file for what Ray says, in a run directory: one that is no part of a record that lies elsewhere."""
    return "ray.log" if local_folder(address_of(path)) is not None else ".ray.log"


class Orders:
    """Passes signals to end (Ctrl-C, `ray job stop`) on to a run: the first asks it to save the state and end, the
    second to end at once, the third ends this driver. They are taken while this lasts, if this is the main thread,
    which alone may. `given_up`: the controller is not heard of any more; `signal`: the first that came."""

    def __init__(self, run: Run, path: Path) -> None:
        self._run, self._path = run, path
        self._names: list[str] = []
        self._sent = 0
        self._heard = 0.0
        self._written = 0.0
        self.given_up = False
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._patience = UNHEARD if local_folder(address_of(path)) is not None else UNPUBLISHED

    def __enter__(self) -> Orders:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        """In the middle of anything: only note it."""
        self.signal = self.signal or number
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
                self._run.stop(f"stopped by {name}", save=self._sent == 1)
        if self._sent:
            written = max(_written(self._path / name) for name in (layout.STATUS, layout.EVENTS, layout.STEPS))
            if written != self._written:
                self._written, self._heard = written, now
            self.given_up = self.given_up or now - self._heard > self._patience


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def say(line: str) -> None:
    """A word of the driver itself, seen at once."""
    print(f"shoal: {line}", file=sys.stderr, flush=True)


def follow(run: Run, path: Path, show: Show, orders: Orders) -> tuple[str, str]:
    """Show a run as it goes, until it ends; returns (status, reason). What `orders` take ends the run in order; if its
    controller does not answer, the driver alone ends."""
    since = time.time() - 1.0

    def over() -> bool:
        orders.look()
        return orders.given_up or run.over()

    with followed(path, say):
        for kind, line in read.follow(path, since=since, stop=over):
            show(kind, line)
        deadline = time.monotonic() + PATIENCE
        while not (over() or time.monotonic() > deadline):
            time.sleep(0.1)
    if not run.over():
        return _on_record(path) or (
            "left",
            f"its controller does not answer: see `shoal status {path.name}`; what is left of it goes on by itself",
        )
    try:
        return run.outcome()
    except ControllerDied as error:
        resume = f"the controller died ({error}); go on with `shoal train ... --resume run_id={path.name}`"
        return _on_record(path) or ("failed", resume)


def _on_record(path: Path) -> tuple[str, str] | None:
    """How the run ended, if its record says that it has."""
    ended = read_json(path / layout.RUN)
    return None if ended is None else (str(ended.get("status")), str(ended.get("reason")))
