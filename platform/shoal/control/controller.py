"""The controller: turns what it hears into events, asks `decide`, and acts. Nothing is decided here.

It is the only writer of the run's record; training workers never wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal import batching, tracking
from shoal.config import Job
from shoal.control.chores import Chores
from shoal.control.decide import apply
from shoal.control.ear import Ear
from shoal.control.events import Ending, Event, Wanted
from shoal.control.finish import finish
from shoal.control.fleet import Fleet
from shoal.control.lifelines import Lifelines
from shoal.control.mishaps import Mishaps, say
from shoal.control.orders import carry_out
from shoal.control.recovery import Recoveries
from shoal.control.rendezvous import Rendezvous
from shoal.control.scribe import Metrics, Scribe
from shoal.control.spawn import Spawner
from shoal.control.state import Shape, State
from shoal.control.stragglers import Stragglers
from shoal.control.takeover import take_over
from shoal.control.watchdog import Watchdog
from shoal.names import controller_name
from shoal.plan import Seat, cell_mesh
from shoal.protocol.said import Committed
from shoal.record.lease import Lease
from shoal.timeouts import Timeouts
from shoal.worker.setup import Meeting, Setup
from shoal_core.workload import make_workload

__all__ = ["Controller"]


class Controller:
    """Runs one job on a `fleet`.

    `seats`: node of each (cell, rank); `start`: steps of the checkpoint to go on from (0: none); `about`: what the
    workload said of itself before the start; `again`: another controller ran this job before and died;
    `session`: whose the run is (`record.lease`), the same for both; `metrics`: are told what goes into the record.

    Raises:
        Held: another session has the run now.
    """

    def __init__(
        self,
        fleet: Fleet,
        job: Job,
        rundir: Path,
        seats: dict[tuple[int, int], str],
        start: int,
        about: dict[str, Any],
        *,
        again: bool = False,
        session: str = "",
        metrics: Metrics | None = None,
    ) -> None:
        self.fleet, self.job, self.rundir, self.again = fleet, job, rundir, again
        self.loop: asyncio.AbstractEventLoop | None = None
        """Of its life; None before."""
        self.run_id = str(job.run_id)
        self.timeouts = Timeouts(job.patience)
        self.workload = make_workload(job.workload)
        self.seats = {Seat(*seat): node for seat, node in seats.items()}
        self.start, self.about = start, about
        self.secret = secrets.token_hex(16)
        self.watchdog = Watchdog(self.timeouts)
        self.mesh = cell_mesh(self.workload, job.workers_per_cell)
        self.ear = Ear(self)
        self.spawner = Spawner(fleet, self.setup, self.unborn, self.run_id, self.mesh)
        heard = (self.ear.joined, self.ear.said, self.ear.gone, self.ear.failed)
        self.lifelines = Lifelines(self.secret, *heard, self.watchdog.gap)
        self.rendezvous = Rendezvous()
        self.recoveries = Recoveries(job.cells)
        self.lease = Lease(rundir, session)
        self.scribe = Scribe(job, rundir, self.workload, self.lease.guard, metrics)
        self.chores = Chores(self)
        self.mishaps = Mishaps()
        self.committed: Committed | None = None
        """The newest commit: what a laggard needs to catch up."""
        self.stopped = 0.0
        """Monotonic time of the last stop or pause."""
        self.stragglers = Stragglers()
        self.roll_backs = 0
        self.outcome: tuple[str, str] | None = None
        self.ended = asyncio.Event()
        size = (job.cells, job.workers_per_cell, job.steps)
        shape = Shape(*size, self.micro_batches, job.snapshots.recalls, self.mesh, self.chores.site)
        self.state = State.new(shape, {}, start)

    def micro_batches(self, step: int) -> int:
        first, last = self.workload.samples(step)
        return batching.count(first, last, self.job.workers_per_cell, self.workload.micro_batch)

    def known(self) -> int:
        """Committed steps of the newest commit whose figures are here; -1 if there is none."""
        return -1 if self.committed is None else self.committed.steps

    def setup(self, name: str, node: str, seat: Seat | None) -> Setup:
        home = None if seat is None else (seat.cell, seat.rank)
        job = self.job.model_dump(mode="json", exclude={"mlflow"})  # its address may hold a password
        return Setup(name, node, home, job, self.rundir, self.meeting)

    def unborn(self, worker: str, why: str) -> None:
        """A worker that was asked for is no more. May be called in any thread."""
        self.later(self.ear.unborn, worker, why)

    def later(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have something done in the event loop. May be called in any thread, while the run lasts."""
        assert self.loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: all is done
            self.loop.call_soon_threadsafe(call, *arguments)

    # ---- life

    async def run(self) -> tuple[str, str]:
        """Run the job to its end; returns (status, reason)."""
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self.uncaught)
        tracker: subprocess.Popen[bytes] | None = None
        try:
            lifeline = await self.lifelines.open(self.fleet.address)
            self.meeting = Meeting(lifeline, self.secret, self.lease.owner)
            tracker = self.mirror()
            await self.chores.nodes()
            if self.again:
                await take_over(self)
            else:
                self.begin()
            chores = [asyncio.create_task(job) for job in (self.chores.slowly(), self.chores.quickly())]
            await self.ended.wait()
            for chore in chores:
                chore.cancel()
        except Exception as error:
            self.mishap(error)
            self.end("failed", f"the controller failed: {type(error).__name__}: {error}")
        finally:
            outcome = self.outcome or ("failed", "the controller ended early")
            outcome = await asyncio.to_thread(finish, self, outcome, tracker)
        return outcome

    def begin(self) -> None:
        """Ask for the planned workers of a run that nobody ran before, or that goes on from a checkpoint."""
        self.scribe.started(self.start, self.about)
        homes = {seat: self.spawner.spawn(self.chores.known[node], seat) for seat, node in self.seats.items()}
        self.state = State.new(self.state.shape, homes, self.start)

    def mirror(self) -> subprocess.Popen[bytes] | None:
        """Start the mirror to MLflow; a run does without one that cannot be started."""
        mlflow = self.job.mlflow
        try:
            return tracking.start(self.rundir, mlflow.uri, mlflow.experiment) if mlflow.enabled else None
        except OSError as error:
            say(f"the mirror to MLflow was not started: {error}")
            return None

    def stop(self, reason: str, *, save: bool = False) -> None:
        """End the run early; with `save`, once its state is saved. May be called in any thread."""
        if save:
            self.later(self.on, Ending(reason, "stopped"))
        else:
            self.later(self.end, "stopped", reason)

    async def give_up_spares(self, count: int, to: str) -> int:
        """Give up to `count` idle spares up to the run `to`, and take none for a while. Returns how many it were."""
        before = set(self.spawner.started)
        for name in self.spawner.cold_spares()[:count]:
            self.spawner.kill(name)
        self.on(Wanted(count - (len(before) - len(self.spawner.started))))
        given = sorted(before - set(self.spawner.started))
        if given:
            self.chores.hold()
            self.scribe.event("spares_given", actors=given, to=to)
        return len(given)

    def end(self, status: str, reason: str) -> None:
        """Note the outcome, so that a controller that takes over from here ends the run too."""
        if self.outcome is None:
            self.outcome = (status, reason)
            self.ended.set()
            self.scribe.event("run_ending", status=status, reason=reason)

    # ---- decisions

    def on(self, event: Event) -> None:
        """Decide and act. An action that fails is told, and the others are still done."""
        if self.ended.is_set():
            return
        for action in apply(self.state, event):
            try:
                carry_out(self, action)
            except Exception as error:
                self.mishap(error)

    def mishap(self, error: BaseException) -> None:
        """The controller's own code failed: told, and no worker's fault."""
        if trace := self.mishaps.note(error):
            say(f"a failure of its own:\n{trace}")
            self.scribe.event("error", actor=controller_name(self.run_id), step=self.state.committed, trace=trace)

    def uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What failed in the event loop and nobody waited for."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.mishap(error)
        elif error is None or self.mishaps.note(error):  # connections come and go
            say(f"{context.get('message')}: {error}")
