"""What workers say and how they go, as events for `decide` and lines for the record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shoal.control.events import Damaged, Ending, Joined, Lost, Unborn
from shoal.control.lifelines import Line
from shoal.control.mishaps import ROW
from shoal.control.verdict import diverged, finite, suspects
from shoal.names import node_of
from shoal.plan import Seat
from shoal.protocol.rendezvous import Question
from shoal.protocol.said import (
    Acked,
    Adopted,
    CannotStart,
    Checkpointed,
    Committed,
    CopyHeld,
    Evaluated,
    Failed,
    Finished,
    Noted,
    NotSaved,
    Phase,
    Ready,
    Said,
)
from shoal_core import marker
from shoal_core.workload import ORIGIN

if TYPE_CHECKING:
    from shoal.control.controller import Controller

__all__ = ["Ear"]


class Ear:
    """Of one controller; everything runs in its event loop."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.early: list[tuple[Line, Said]] | None = None
        """While a run is being taken over: what workers said before the state stood."""
        self.not_finite = 0
        """Steps in a row, up to the last committed one, whose loss or gradient norm was no number."""
        self.last: Committed | None = None
        """The newest commit of this generation by a worker that is not the first of its cell."""
        self.told: dict[str, int] = {}
        """The number of each worker's last word that a controller before this one put into the journal."""

    # ---- lifelines

    def joined(self, line: Line) -> None:
        one = self.controller
        started = one.spawner.started.get(line.worker)
        if started is None:
            line.hang_up()
            return
        if self.early is not None or line.greeting.phase is Phase.UNBORN:  # the latter says why with its next word
            return
        started.heard = True
        one.chores.node_of[line.worker] = line.node
        one.scribe.event("worker_ready", actor=line.worker, node=line.node, pid=line.pid)
        home = line.greeting.home
        one.on(Joined(line.worker, line.node, Seat(*home) if home else None))

    def gone(self, line: Line, why: str) -> None:
        one = self.controller
        if one.ended.is_set() or line.worker not in one.spawner.started:
            return
        if self.early is None and line.greeting.phase is Phase.UNBORN:
            self.unborn(line.worker, why)
            return
        now = time.monotonic()
        one.spawner.kill(line.worker)
        if self.early is not None:
            return
        try:
            self.died(line.worker, line.node, line.pid, why, time.time() - (now - line.heard))
        finally:  # whatever becomes of the record
            one.on(Lost(line.worker, why))

    def failed(self, error: Exception) -> None:
        """The controller failed over what a worker said: no fault of the worker's."""
        one = self.controller
        one.mishap(error)
        one.mishaps.row += 1
        if one.mishaps.row > ROW:
            why = f"{type(error).__name__}: {error}"
            one.on(
                Ending(f"the controller failed over {one.mishaps.row} words of workers in a row, the last time {why}")
            )

    def died(self, worker: str, node: str, pid: int | None, why: str, alive: float) -> None:
        """Put a death on record. `alive`: wall time of the last sign of life."""
        one = self.controller
        seat = one.state.seats.get(worker)
        coords = None if seat is None else one.mesh.named(seat.rank)
        fields = {"actor": worker, "node": node, "pid": pid, "cell": None if seat is None else seat.cell}
        one.scribe.event("death", **fields, coords=coords, how=why, step=one.state.committed)
        if seat is not None and one.state.cells[seat.cell].phase == "live":
            one.recoveries.died(seat.cell, worker, node, why, alive, time.time())

    def unborn(self, worker: str, why: str, trace: str = "") -> None:
        """A worker died or hangs before its first word, or said as its only one that it cannot start."""
        one = self.controller
        started = one.spawner.started.get(worker)
        if started is None or started.heard or one.ended.is_set():
            return
        one.spawner.kill(worker)
        one.scribe.event("not_started", actor=worker, node=started.node, how=why, trace=trace or None)
        one.on(Unborn(worker, started.node, why))

    # ---- words

    def said(self, line: Line, message: Said) -> None:
        one = self.controller
        if isinstance(message, Question):
            if one.lifelines.lines.get(line.worker) is line:  # who was fenced meets nobody
                one.lifelines.send_all(one.rendezvous.hear(line.worker, message))
            return
        if self.early is not None:
            self.early.append((line, message))
            return
        worker = line.worker
        current = getattr(message, "generation", -1) == one.state.generation
        match message:
            case Committed():
                if current:
                    self.commit(message)
                one.on(message)
            case Evaluated():
                if current and message.steps > one.state.evaluated:
                    one.scribe.event("evaluation", step=message.steps, **message.metrics)
                one.on(message)
            case Adopted():
                seat = one.state.seats.get(worker)
                if current and seat is not None:
                    one.recoveries.copied(seat.cell, message.seconds)
            case CannotStart():
                self.unborn(worker, message.message, message.trace)
            case Failed():
                if message.trace and not one.ended.is_set():
                    samples = one.workload.samples(one.state.committed)
                    where = {"step": one.state.committed, "samples": samples, "trace": message.trace}
                    self.journal("error", worker, message.number, where)
                if message.damaged is not None:
                    self.damaged(message.damaged.steps, message.damaged.reason)
                one.on(message)
            case Finished() if current and self.not_finite:
                one.on(Ending(diverged(self.not_finite)))
            case Noted():
                seat = one.state.seats.get(worker)
                if current and seat is not None and seat.cell == one.state.live[0]:
                    fields = {"step": message.step, **message.fields, "cell": seat.cell}
                    self.journal(message.kind, worker, message.number, fields)
            case NotSaved(steps, reason):
                self.journal("checkpoint_failed", worker, message.number, {"step": steps, "reason": reason})
                one.on(message)
            case Checkpointed(steps, _, path, seconds, size):
                if steps > one.state.checkpoint:
                    one.scribe.event("checkpoint", step=steps, path=path, seconds=seconds, bytes=size)
                one.on(message)
            case Ready() | Acked() | CopyHeld() | Finished():
                one.on(message)

    def damaged(self, steps: int, reason: str) -> None:
        """A checkpoint cannot be gone back to: it is set aside, and the newest before it is to be tried."""
        one, root = self.controller, self.controller.rundir / "checkpoints"
        if steps != one.state.checkpoint:
            return  # another worker was first to say so
        folder = root / f"step-{steps:08d}"
        with contextlib.suppress(OSError):  # it may be gone
            folder = marker.set_aside(folder)
        one.scribe.event("checkpoint_passed_over", step=steps, path=str(folder), reason=reason)
        first = int((one.job.workload.get(ORIGIN) or {}).get("steps", 0))  # before it batches were others
        older = [whole.steps for whole in marker.whole(root) if first <= whole.steps < steps]
        one.on(Damaged(steps, max(older, default=None), reason))

    def journal(self, kind: str, worker: str, number: int, fields: dict[str, Any]) -> None:
        """Put a worker's word into the journal, with its number: a controller that takes over from this one hears it
        again and knows that it stands there."""
        if number < 0 or number > self.told.get(worker, -1):
            self.controller.scribe.event(kind, **fields, actor=worker, seq=number)

    def commit(self, message: Committed) -> None:
        """The first word of a committed step is its record; only one of them says how every worker did.

        The first worker of a cell says every step, in order. Any other only says its last, and may be heard before what
        the first ones said of the steps before: its word waits until the generation is over (`settle`)."""
        one = self.controller
        if message.steps > one.known() and message.steps >= one.state.committed:
            one.committed = message
        seat = one.state.seats.get(message.worker)
        if seat is not None and seat.rank == 0:
            self.record(message)
        else:
            self.last = message
        self.mistrust(message)
        self.pace(message)

    def settle(self) -> None:
        """A generation is over, and all that was said in it is heard: put on record what only one word told of."""
        last, self.last = self.last, None
        if last is not None:
            self.record(last)

    def record(self, message: Committed) -> None:
        """Put a committed step on record, if it is not there."""
        one = self.controller
        if message.steps - 1 <= one.scribe.pen.last_step:
            return
        try:
            one.watchdog.step(one.scribe.step(message, message.generation))
        except ValueError as error:
            one.on(Ending(f"step {message.steps - 1} cannot be put on record: {error}"))
            return
        one.mishaps.row = 0
        for record in one.recoveries.step(list(one.state.live), time.time()):
            one.scribe.event("recovery", **record)
        self.count(message.metrics)
        self.roll_back(message)

    def count(self, metrics: Mapping[str, float | None]) -> None:
        """End a run whose steps are no numbers any more: its state does not come back by itself."""
        one = self.controller
        self.not_finite = 0 if finite(metrics) else self.not_finite + 1
        if self.not_finite > one.job.not_finite:
            one.on(Ending(diverged(self.not_finite)))

    def roll_back(self, message: Committed) -> None:
        """Tell of a bad step; end a run that has too many."""
        one, step, back = self.controller, message.steps - 1, message.rolled_back
        if back is not None:
            samples = (one.workload.samples(back)[0], one.workload.samples(step)[1])
            one.scribe.event("rolled_back", step=step, to=back, samples=samples)
            one.roll_backs += 1
            if one.roll_backs > one.job.snapshots.roll_backs:
                one.on(Ending(f"rolled back more than {one.job.snapshots.roll_backs} times, last at step {step}"))

    def mistrust(self, message: Committed) -> None:
        """Act on what a commit says of replicas that differ."""
        one, step, sums = self.controller, message.steps - 1, message.checksums
        if sums:
            for cell in suspects(sums, one.state.live, one.job.workers_per_cell):
                worker = one.state.cells[cell].people()[0]
                one.scribe.event("disagreement", step=step, cell=cell, checksums=sums)
                why = f"cell {cell}'s state differed from the others' at step {step}"
                one.on(Failed(worker, one.state.generation, "corrupt", why))

    def pace(self, message: Committed) -> None:
        """Name stragglers, and replace them if the job says so and somebody is there to take their seat."""
        one = self.controller
        crew = one.state.crew()
        if len(message.pace) != len(crew):
            return  # committed late, not voted; or the membership changed since
        cells = [one.state.seats[worker].cell for worker in crew]
        for slow in one.stragglers.step(crew, cells, message.pace):
            node = node_of(slow.worker)
            one.scribe.event("straggler", actor=slow.worker, node=node, seconds=slow.seconds, typical=slow.typical)
            line = one.lifelines.lines.get(slow.worker)
            if one.job.stragglers == "replace" and line is not None and one.state.spares():
                one.chores.cut(line, "slow step after step")
