"""The controller of a run: brings what happens to those who decide (`decide`), and what they answer to those who do it.

Nothing is decided here. It is the only writer of the run's record; training workers never wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shoal.config import Job
from shoal.control.asking import Asker, Autoscaler
from shoal.control.desk import Desk, Ear
from shoal.control.finish import finish, mirror
from shoal.control.fleet import Fleet
from shoal.control.forecast import Forecast
from shoal.control.lifelines import Lifelines, Line
from shoal.control.mishaps import Mishaps
from shoal.control.notifier import Notifier
from shoal.control.orders import carry_out, sweep
from shoal.control.press import Press, persistently
from shoal.control.recovery import Recoveries
from shoal.control.rendezvous import Rendezvous
from shoal.control.run import Outcome
from shoal.control.scribe import Listener, Scribe
from shoal.control.spawn import Spawner
from shoal.control.takeover import take_over
from shoal.control.timers import IN_A_ROW, Bulletin, Survey, Watch, every, keep
from shoal.control.wishes import Wishes
from shoal.decisions.events import Asked, Ending, Wanted
from shoal.decisions.shape import shape_of
from shoal.decisions.state import State
from shoal.names import controller_name
from shoal.plan import Seat, cell_mesh
from shoal.plan.reshape import Seen
from shoal.protocol.rendezvous import Question
from shoal.record.hold import hold
from shoal.record.lease import Lease, LeaseLost
from shoal.record.pen import Stall
from shoal.timeouts import Timeouts
from shoal.worker.setup import Meeting, Setup
from shoal_core.loading import make_workload
from shoal_core.store import local_folder, open_store

__all__ = ["Controller"]

WISHES = 5.0
"""Seconds between two looks at a store for what somebody wishes."""


class Controller:
    """Runs one job on a `fleet`.

    `seats`: node of each (cell, rank); `start`: steps of the checkpoint to go on from (0: none); `about`: what the
    workload said of itself before the start; `again`: another controller ran this job before and died;
    `session`: whose the run is (`record.lease`), the same for both; `listeners`: are told what goes into the record;
    `autoscaler`: of the cluster, if it may have one.

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
        listeners: Sequence[Listener] = (),
        autoscaler: Autoscaler | None = None,
    ) -> None:
        self.fleet, self.job, self.rundir, self.again = fleet, job, rundir, again
        self.loop: asyncio.AbstractEventLoop | None = None
        """Of its life; None before."""
        self.run_id, self.secret = str(job.run_id), secrets.token_hex(16)
        self.timeouts = Timeouts(job.patience, job.cells * job.workers_per_cell)
        self.workload = make_workload(job.workload)
        self.mesh = cell_mesh(self.workload, job.workers_per_cell)
        self.seats = {Seat(*seat): node for seat, node in seats.items()}
        self.start, self.about = start, about
        self.since = time.time()
        """When the session began."""
        self.outcome: Outcome | None = None
        self.ended = asyncio.Event()
        # what is done
        self.publisher = None if local_folder(job.place) else persistently(partial(hold, job.place, session, rundir))
        self.lease = Lease(rundir, session)
        self.notifier = Notifier(job, start, self.event)
        self.forecast = Forecast(job, lambda: self.state, self.event)
        told = (*listeners, self.notifier, self.forecast)
        self.scribe = Scribe(job, rundir, self.workload, self.lease.guard, told)
        self.mishaps = Mishaps(self.failed)
        self.recoveries, self.rendezvous = Recoveries(job.cells), Rendezvous()
        self.spawner = Spawner(fleet, self.setup, self.unborn, self.run_id, self.mesh)
        # what happens
        parameters = float(about.get("parameters", 0))
        site, memory = lambda node: self.survey.site(node), lambda node: self.survey.memory(node)
        shape = shape_of(job, self.workload, self.mesh, site, parameters, memory)
        self.desk = Desk(State.new(shape, {}, start), partial(carry_out, self), self.mishaps.tell)
        self.survey: Survey = Survey(fleet, self.spawner.unheard, self.desk.take, self.scribe.event)
        self.ear = Ear(self.spawner, self.desk.take, self.survey.spoke, self.asks, self.mishaps.tell, self.moved)
        heard = (self.ear.joined, self.ear.said, self.ear.gone, self.ear.failed)
        self.lifelines = Lifelines(self.secret, *heard)
        self.watch = Watch(self.timeouts.look, self.lifelines.lines, self.lifelines.gap, self.asked, self.desk.take)
        self.press: Press | None = None
        """Of a record on a store."""
        if self.publisher is not None:
            to = (self.lifelines.send_all, self.scribe.event, self.lost)
            self.press = Press(self.publisher, self.scribe.pen.settle, self.lifelines.lines, self.waiting, *to)
        wishes = (open_store(job.place), WISHES) if self.press else (open_store(rundir), 1.0)
        self.wishes = Wishes(*wishes, lambda: self.state.crew(), self.lifelines.broadcast, self.scribe.event)
        started, view = self.spawner.started, lambda: self.survey.nodes
        self.asker = Asker(job, autoscaler, lambda: self.state, view, started, self.scribe.event)
        self.bulletin = Bulletin(self.status, self.stall, self.desk.take, self.scribe.event)

    def setup(self, name: str, node: str, seat: Seat | None) -> Setup:
        """What a worker needs to know to start."""
        home = None if seat is None else (seat.cell, seat.rank)
        job = self.job.model_dump(mode="json", exclude={"mlflow", "notify"})  # no matter of theirs
        return Setup(name, node, home, job, self.rundir, self.meeting)

    @property
    def state(self) -> State:
        """What is known of the run."""
        return self.desk.state

    # ---- what happens

    def later(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have something done in the event loop. May be called in any thread, while the run lasts."""
        assert self.loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: all is done
            self.loop.call_soon_threadsafe(call, *arguments)

    def unborn(self, worker: str, why: str) -> None:
        """A worker that was asked for is no more. May be called in any thread."""
        self.later(self.ear.unborn, worker, why)

    def asks(self, line: Line, question: Question) -> None:
        """A worker's question about a membership. Who was fenced meets nobody."""
        if self.lifelines.lines.get(line.worker) is line:
            self.lifelines.send_all(self.rendezvous.hear(line.worker, question))

    def stop(self, reason: str, *, save: bool = False) -> None:
        """End the run early; with `save`, once its state is saved. May be called in any thread."""
        self.later(self.desk.take, Ending(reason, "stopped", at_once=not save))

    async def give_up_spares(self, count: int, to: str) -> int:
        """Give up to `count` idle spares up to the run `to`, and take none for a while. Returns how many it were."""
        before = set(self.spawner.started)
        self.desk.take(Wanted(count, to, tuple(self.spawner.cold_spares()), time.monotonic()))
        return len(before - set(self.spawner.started))

    def asked(self, now: float) -> list[Asked]:
        """Workers that were asked for and have not said a word."""
        return self.spawner.asked(now, self.survey.nodes)

    # ---- what is written

    def event(self, kind: str, **fields: Any) -> None:
        """A line of the journal."""
        self.scribe.event(kind, **fields)

    def failed(self, trace: str) -> None:
        """The controller's own code failed: put that into the journal."""
        self.scribe.event("error", actor=controller_name(self.run_id), step=self.state.committed, trace=trace)

    def stall(self) -> tuple[Stall | None, bool]:
        """What keeps the record from being written, and whether as much waits as may."""
        return self.scribe.pen.stall(), self.scribe.pen.full

    def waiting(self) -> dict[str, int]:
        """The first word of each worker that was heard and is not on record yet, by its number."""
        first: dict[str, int] = {}
        for word in self.state.unrecorded.values():
            first[word.worker] = min(word.number, first.get(word.worker, word.number))
        return first

    def status(self, stall: Stall | None) -> None:
        """Write the status file; a run that another session took ends."""
        if self.lease.succeeded:
            self.leave()
        elif self.lease.lost:
            self.desk.take(Ending(self.lease.lost, at_once=True))
        if not self.ended.is_set():  # what it ended as is told last
            behind = (None, None) if self.press is None else self.press.behind()
            told = (self.meeting.lifeline, behind, self.asker.told)
            self.scribe.status(self.state, self.lifelines.lines, stall, *told)

    def lost(self, error: LeaseLost) -> None:
        """The record on the store is another's."""
        self.lease.lose(error.words, succeeded=error.succeeded)

    def moved(self, line: Line) -> None:
        """A worker obeys another controller of this session, which took this one for dead."""
        self.lease.lose(f"{line.worker} obeys another controller of run {self.run_id} now", succeeded=True)
        self.leave()

    def leave(self) -> None:
        """End, and leave the run, its workers and its record to the controller that took them over."""
        if self.outcome is None:
            self.outcome = Outcome("failed", self.lease.lost)
            self.spawner.started.clear()
            self.desk.close()
            self.ended.set()

    # ---- life

    async def run(self) -> tuple[str, str]:
        """Run the job to its end; returns (status, reason)."""
        self.loop = asyncio.get_running_loop()
        gc.set_threshold(100_000, 50, 100)  # each collection looks at all that is known of every worker
        self.loop.set_exception_handler(self.mishaps.uncaught)
        tracker: subprocess.Popen[bytes] | None = None
        failed = self.mishaps.tell
        try:
            lifeline = await self.lifelines.open(self.fleet.address)
            self.meeting = Meeting(lifeline, self.secret, self.lease.owner)
            tracker = mirror(self.job, self.rundir)
            await self.survey.find()
            if self.again:
                await take_over(self)
            else:
                await sweep(self)
                self.begin()
            press = () if self.press is None else (every(self.press.look, failed),)
            looks = [self.survey.look, self.asker.look, self.bulletin.look, self.wishes.look]
            looks += [self.notifier.look, self.forecast.look]
            watch = every(self.watch.look, failed, IN_A_ROW)
            await keep([watch, *(every(look, failed) for look in looks), *press], self.ended)
        except Exception as error:
            failed(error)
            reason = f"the controller failed: {type(error).__name__}: {error}"
            self.end(Outcome("failed", reason, by_controller=True))
        finally:
            outcome = self.outcome or Outcome("failed", "the controller ended early", by_controller=True)
            ended = await asyncio.to_thread(finish, self, outcome, tracker)
        return ended

    def begin(self) -> None:
        """Ask for the planned workers of a run that nobody ran before, or that goes on from a checkpoint. Seats whose
        nodes are gone since it was planned are filled as others come."""
        self.scribe.started(self.start, self.about)
        there = self.survey.nodes
        homes = {seat: self.spawner.spawn(there[node], seat) for seat, node in self.seats.items() if node in there}
        self.desk.state = State.new(self.state.shape, homes, self.start)
        self.state.seen = Seen(time.monotonic())

    def end(self, outcome: Outcome) -> None:
        """Note the outcome, so that a controller that takes over from here ends the run too."""
        if self.outcome is None:
            self.outcome = outcome
            self.ended.set()
            self.desk.close()
            self.scribe.event("run_ending", **outcome._asdict())
