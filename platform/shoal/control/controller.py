"""The controller: turns what it hears into events, asks `decide`, and acts. Nothing is decided here.

It is the only writer of the run's record; training workers never wait for it.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal import batching, checkpoint, tracking
from shoal.config import Job
from shoal.control.chores import Chores
from shoal.control.decide import apply
from shoal.control.fleet import Fleet
from shoal.control.lifelines import Lifelines, Line
from shoal.control.messages import (
    Acked,
    Action,
    Checkpointed,
    Committed,
    End,
    Evaluated,
    Event,
    Failed,
    Finished,
    Form,
    Generation,
    Joined,
    Journal,
    Keep,
    Kept,
    Lost,
    Pause,
    Raise,
    Ready,
    Release,
    Rewind,
    Stop,
)
from shoal.control.readopt import Past, Said, rebuild
from shoal.control.recall import appoint
from shoal.control.recovery import Recoveries
from shoal.control.scribe import Scribe
from shoal.control.spawn import Spawner, node_of
from shoal.control.state import Ack, Shape, State
from shoal.control.stragglers import Stragglers
from shoal.control.verdict import suspects
from shoal.control.watchdog import Watchdog
from shoal.plan import Seat, cell_mesh
from shoal.record import read
from shoal.timeouts import Timeouts
from shoal.worker.groups import serve_store
from shoal.worker.main import Meeting, Setup
from shoal.workload import make_workload

__all__ = ["Controller", "controller_name"]


def controller_name(run_id: str) -> str:
    return f"{run_id}/controller"


class Controller:
    """Runs one job on a `fleet`.

    `seats`: node of each (cell, rank); `start`: steps of the checkpoint to go on from (0: none); `about`: what the
    workload said of itself before the start; `again`: another controller ran this job before and died.
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
    ) -> None:
        self.fleet, self.job, self.rundir, self.again = fleet, job, rundir, again
        self.run_id = str(job.run_id)
        self.timeouts = Timeouts(job.patience)
        self.workload = make_workload(job.workload)
        self.seats = {Seat(*seat): node for seat, node in seats.items()}
        self.start, self.about = start, about
        listener = socket.create_server((fleet.address, 0), backlog=1024)
        self.store_address = listener.getsockname()
        self.store = serve_store(listener)
        self.secret = secrets.token_hex(16)
        self.watchdog = Watchdog(self.timeouts)
        self.mesh = cell_mesh(self.workload, job.workers_per_cell)
        self.spawner = Spawner(fleet, self.setup, self.run_id, self.mesh)
        self.lifelines = Lifelines(self.secret, self.joined, self.said, self.gone, self.watchdog.gap)
        self.recoveries = Recoveries(job.cells)
        self.scribe = Scribe(job, rundir, self.workload, start)
        self.chores = Chores(self)
        self.early: list[tuple[Line, dict[str, Any]]] | None = None
        """While a run is being taken over: what workers said before the state stood."""
        self.committed: dict[str, Any] = {}
        """The newest commit record: what a laggard needs to catch up."""
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

    def setup(self, name: str, node: str, seat: Seat | None) -> Setup:
        home = None if seat is None else (seat.cell, seat.rank)
        return Setup(name, node, home, self.job.model_dump(mode="json"), self.rundir, self.meeting)

    # ---- life

    async def run(self) -> tuple[str, str]:
        """Run the job to its end; returns (status, reason)."""
        self.loop = asyncio.get_running_loop()
        lifeline = await self.lifelines.open(self.fleet.address)
        self.meeting = Meeting(lifeline, self.store_address, self.secret)
        mlflow = self.job.mlflow
        tracker = tracking.start(self.rundir, mlflow.uri, mlflow.experiment) if mlflow.enabled else None
        try:
            await self.chores.nodes()
            if self.again:
                await self.take_over()
            else:
                self.scribe.started(self.start, self.about)
                homes = {seat: self.spawner.spawn(self.chores.known[node], seat) for seat, node in self.seats.items()}
                self.state = State.new(self.state.shape, homes, self.start)
            chores = [asyncio.create_task(job) for job in (self.chores.slowly(), self.chores.quickly())]
            await self.ended.wait()
            for chore in chores:
                chore.cancel()
        finally:
            outcome = self.outcome or ("failed", "the controller ended early")
            await asyncio.to_thread(self.finish, outcome, tracker)
        return outcome

    async def take_over(self) -> None:
        """Find the workers of a controller that died, and what it knew. Training does not wait for this."""
        since = time.monotonic()
        events = read.events(self.rundir)
        ending = next((e for e in reversed(events) if e["kind"] in ("run_ending", "run_started")), None)
        if ending is not None and ending["kind"] == "run_ending":
            self.end(ending["status"], ending["reason"])
        whole = checkpoint.last_whole(self.rundir / "checkpoints")
        past = Past.read(events, self.scribe.run.last_step + 1, max(self.start, whole.steps if whole else 0))
        self.roll_backs = sum(event["kind"] == "rolled_back" for event in events)
        if records := read.steps(self.rundir):
            self.committed = {**records[-1], "steps": records[-1]["step"] + 1}
        self.early = []
        asked = await asyncio.to_thread(self.spawner.adopt, self.meeting)
        while set(asked) - self.lifelines.lines.keys() and time.monotonic() - since < self.timeouts.meet:
            await asyncio.sleep(0.01)
        for mute in set(asked) - self.lifelines.lines.keys():
            self.spawner.kill(mute)
        living = {
            line.worker: Said(line.node, as_seat(line.doing["seat"]), *(line.doing[k] for k in SAID))
            for line in self.lifelines.lines.values()
        }
        self.state, corrections = rebuild(self.state.shape, past, living)
        self.scribe.event("controller_back", seconds=time.monotonic() - since, workers=len(living))
        early, self.early = self.early, None
        for worker, line in self.lifelines.lines.items():
            self.spawner.started[worker].heard = True
            self.chores.node_of[worker] = line.node
        for event in corrections:
            if isinstance(event, Lost):
                self.died(event.worker, node_of(event.worker), None, event.how, time.time())
            self.on(event)
        for line, message in early:
            self.said(line, message)
        actions: list[Action] = []
        appoint(self.state, actions)
        for action in actions:
            self.act(action)

    def stop(self, reason: str) -> None:
        """End the run early. May be called in any thread."""
        self.loop.call_soon_threadsafe(self.end, "stopped", reason)

    def end(self, status: str, reason: str) -> None:
        """Note the outcome, so that a controller that takes over from here ends the run too."""
        if self.outcome is None:
            self.outcome = (status, reason)
            self.scribe.event("run_ending", status=status, reason=reason)
            self.ended.set()

    def finish(self, outcome: tuple[str, str], tracker: subprocess.Popen[bytes] | None) -> None:
        """Reap every worker, then close the record: nothing of the run is left when `run.json` says that it ended."""
        for name in list(self.spawner.started):
            self.spawner.kill(name)
        deadline = time.monotonic() + 5.0
        while self.lifelines.lines and time.monotonic() < deadline:
            time.sleep(0.05)
        self.lifelines.close()
        self.scribe.ended(*outcome, self.state.committed)
        subprocess.run([sys.executable, "-m", "shoal.report", str(self.rundir)], check=False)
        if tracker is not None:
            problem = tracking.finish(tracker, self.rundir)
            if problem:
                print(f"shoal: {problem}", flush=True)

    # ---- what workers say

    def joined(self, line: Line) -> None:
        started = self.spawner.started.get(line.worker)
        if started is None:
            line.writer.close()
            return
        if self.early is not None:
            return
        started.heard = True
        self.chores.node_of[line.worker] = line.node
        self.scribe.event("worker_ready", actor=line.worker, node=line.node, pid=line.pid)
        self.on(Joined(line.worker, line.node, Seat(*line.home) if line.home else None))

    def gone(self, line: Line, why: str) -> None:
        if self.ended.is_set() or line.worker not in self.spawner.started:
            return
        now = time.monotonic()
        self.spawner.kill(line.worker)
        if self.early is None:
            self.died(line.worker, line.node, line.pid, why, time.time() - (now - line.heard))
            self.on(Lost(line.worker, why))

    def died(self, worker: str, node: str, pid: int | None, why: str, alive: float) -> None:
        """Put a death on record. `alive`: wall time of the last sign of life."""
        seat = self.state.seat(worker)
        coords = None if seat is None else self.mesh.named(seat.rank)
        fields = {"actor": worker, "node": node, "pid": pid, "cell": None if seat is None else seat.cell}
        self.scribe.event("death", **fields, coords=coords, how=why, step=self.state.committed)
        if seat is not None and self.state.cells[seat.cell].phase == "live":
            self.recoveries.died(seat.cell, worker, node, why, alive, time.time())

    def said(self, line: Line, message: dict[str, Any]) -> None:
        if self.early is not None:
            self.early.append((line, message))
            return
        worker, generation = line.worker, message.get("generation", -1)
        current = generation == self.state.generation
        match message["type"]:
            case "commit":
                if current:
                    self.commit(message)
                self.on(Committed(worker, generation, message["steps"]))
            case "evaluated":
                if current and message["steps"] > self.state.evaluated:
                    self.scribe.event("evaluation", step=message["steps"], **message["metrics"])
                self.on(Evaluated(worker, generation, message["steps"]))
            case "ready":
                self.on(Ready(worker, message["cell"], message["attempt"]))
            case "ack":
                done, flags = tuple(message["done"]), {key: message[key] for key in ("out", "whole", "rank")}
                self.on(Acked(worker, generation, Ack(message["steps"], message["evaluated"], done, **flags)))
            case "adopted":
                seat = self.state.seat(worker)
                if current and seat is not None and message["bytes"]:
                    self.recoveries.copied(seat.cell, message["state"])
            case "failed":
                if message["trace"] and not self.ended.is_set():
                    samples = self.workload.samples(self.state.committed)
                    self.scribe.event(
                        "error", actor=worker, step=self.state.committed, samples=samples, trace=message["trace"]
                    )
                where, attempt = message["where"], message.get("attempt", -1)
                self.on(Failed(worker, generation, where, message["message"], attempt))
            case "finished":
                self.on(Finished(worker, generation))
            case "note":
                seat = self.state.seat(worker)
                if current and seat is not None and seat.cell == self.state.live[0]:
                    fields = {key: value for key, value in message.items() if key not in ("type", "generation")}
                    self.scribe.event(**fields, cell=seat.cell)
            case "kept":
                self.on(Kept(worker, message["rank"], message["steps"], message["era"]))
            case "checkpoint_failed":
                self.scribe.event("checkpoint_failed", step=message["steps"], reason=message["reason"])
                if self.state.verdict:
                    self.end("failed", f"{self.state.verdict}; its state could not be saved: {message['reason']}")
            case "checkpoint":
                if message["steps"] > self.state.checkpoint:
                    fields = {key: message[key] for key in ("path", "seconds", "bytes")}
                    self.scribe.event("checkpoint", step=message["steps"], **fields)
                self.on(Checkpointed(message["steps"]))

    def commit(self, message: dict[str, Any]) -> None:
        """The first word of a committed step is its record."""
        if message["steps"] > max(self.committed.get("steps", -1), self.state.committed):
            self.committed = message
            self.watchdog.step(self.scribe.step(message, self.state.generation))
            for record in self.recoveries.step(list(self.state.live), time.time()):
                self.scribe.event("recovery", **record)
            self.mistrust(message)
            self.pace(message)

    def mistrust(self, message: dict[str, Any]) -> None:
        """Act on what a commit says of bad steps and of replicas that differ."""
        step, back = message["steps"] - 1, message.get("rolled_back")
        if back is not None:
            samples = (self.workload.samples(back)[0], self.workload.samples(step)[1])
            self.scribe.event("rolled_back", step=step, to=back, samples=samples)
            self.roll_backs += 1
            if self.roll_backs > self.job.snapshots.roll_backs:
                self.end("failed", f"rolled back more than {self.job.snapshots.roll_backs} times, last at step {step}")
        if sums := message.get("checksums"):
            for cell in suspects(sums, self.state.live, self.job.workers_per_cell):
                worker = self.state.cells[cell].people()[0]
                self.scribe.event("disagreement", step=step, cell=cell, checksums=sums)
                why = f"cell {cell}'s state differed from the others' at step {step}"
                self.on(Failed(worker, self.state.generation, "corrupt", why))

    def pace(self, message: dict[str, Any]) -> None:
        """Name stragglers, and replace them if the job says so and somebody is there to take their seat."""
        crew = self.state.crew()
        if len(message.get("pace", ())) != len(crew):
            return  # raised, not voted; or the membership changed since
        cells = [self.state.seats[worker].cell for worker in crew]
        for slow in self.stragglers.step(crew, cells, message["pace"]):
            node = node_of(slow.worker)
            self.scribe.event("straggler", actor=slow.worker, node=node, seconds=slow.seconds, typical=slow.typical)
            line = self.lifelines.lines.get(slow.worker)
            if self.job.stragglers == "replace" and line is not None and self.state.spares():
                self.chores.cut(line, "slow step after step")

    # ---- decisions into effects

    def keeper(self, worker: str, era: int) -> dict[str, Any] | None:
        """Where a worker keeps copies for others, if it is there."""
        line = self.lifelines.lines.get(worker)
        return None if line is None else {**line.doing["copies"], "era": era}

    def going(self, cell: int) -> list[str]:
        """The nodes of a cell that will be taken away."""
        nodes = {self.state.workers[worker].node for worker in self.state.cells[cell].people()}
        return sorted(nodes & self.state.draining.keys())

    def on(self, event: Event) -> None:
        if self.ended.is_set():
            return
        for action in apply(self.state, event):
            self.act(action)

    def act(self, action: Action) -> None:
        match action:
            case Form(cell, attempt, members, restore, keep, recall):
                if cell in self.state.successors:
                    self.recoveries.leaves(cell, self.going(cell), time.time())
                self.recoveries.formed(cell, time.time())
                order = {"type": "form", "cell": cell, "attempt": attempt, "size": len(members)}
                order |= {"restore": restore, "keep": keep, "recall": None}
                for rank, worker in enumerate(members):
                    if recall is not None:
                        order["recall"] = {"steps": recall.steps, "from": self.keeper(recall.keepers[rank], 0)}
                    self.lifelines.send(worker, order | {"rank": rank})
            case Keep(generation, era, keepers, ranks):
                for owner, keeper in keepers.items():
                    order = {"type": "keep", "generation": generation, "rank": ranks[owner]}
                    self.lifelines.send(owner, order | {"to": self.keeper(keeper, era)})
            case Stop(generation, broken, workers):
                self.stopped = time.monotonic()
                for worker in workers:
                    self.lifelines.send(worker, {"type": "stop", "generation": generation, "broken": broken})
            case Pause(generation, workers):
                for cell in self.state.leaving:
                    self.recoveries.leaves(cell, self.going(cell), time.time())
                for worker in workers:
                    self.lifelines.send(worker, {"type": "pause", "generation": generation})
            case Raise(generation, steps, workers):
                assert self.committed["steps"] == steps, (steps, self.committed.get("steps"))
                self.stopped = time.monotonic()
                order = {key: self.committed[key] for key in ("stats", "norm_sq")}
                order |= {"takers": self.committed.get("takers", []), "steps": steps}
                order |= {"type": "raise", "generation": generation}
                for worker in workers:
                    self.lifelines.send(worker, order)
            case Release(workers):
                for worker in workers:
                    self.spawner.kill(worker)
            case Generation():
                moving = self.state.successors  # those cells are still where they were
                self.recoveries.generation([c for c in action.cells if c not in moving], time.time())
                # on record before anybody acts on it: a controller that takes over finds nobody in a later one
                self.scribe.generation(action)
                for crew in action.cells.values():
                    for worker in crew:
                        self.lifelines.send(worker, {"type": "generation", **asdict(action)})
            case Rewind(steps, lost):
                self.recoveries.rewound(lost)
                self.committed = {}
                self.scribe.rewound(steps)
            case Journal(kind, fields):
                self.scribe.event(kind, **fields)
                if kind == "decision":
                    self.recoveries.decision(fields["rung"], fields["cells"], fields["reason"])
            case End(status, reason):
                self.end(status, reason)


SAID = ("attempt", "generation", "phase")


def as_seat(pair: Any) -> tuple[int, int] | None:
    return None if pair is None else (int(pair[0]), int(pair[1]))
