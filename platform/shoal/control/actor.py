"""The controller: a detached, named Ray actor that turns connections into events, asks `decide`, and acts.

Nothing is decided here. It is the only writer of the run's record; training workers never wait for it.
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

import ray

from shoal import batching, tracking
from shoal.config import Job
from shoal.control.decide import decide, unanswered
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
    Lost,
    Raise,
    Ready,
    Rewind,
    Stop,
)
from shoal.control.recovery import Recoveries
from shoal.control.scribe import Scribe
from shoal.control.spawn import Spawner, spares_wanted
from shoal.control.state import Ack, Shape, State
from shoal.nodes import living
from shoal.plan import Node, Seat
from shoal.timeouts import Timeouts
from shoal.worker.actor import Setup
from shoal.worker.groups import serve_store
from shoal.workload import make_workload

__all__ = ["Controller", "controller_name"]


def controller_name(run_id: str) -> str:
    return f"{run_id}/controller"


@ray.remote(max_restarts=0, num_cpus=0)
class Controller:
    """Runs one job.

    `seats`: node of each (cell, rank); `start`: steps of the checkpoint to go on from (0: none); `about`: what the
    workload said of itself before the start.
    """

    def __init__(
        self,
        job: dict[str, Any],
        rundir: str,
        seats: dict[tuple[int, int], str],
        start: int,
        about: dict[str, Any],
    ) -> None:
        self.job = Job.model_validate(job)
        self.run_id = str(self.job.run_id)
        self.timeouts = Timeouts(self.job.patience)
        self.workload = make_workload(self.job.workload)
        self.seats = {Seat(*seat): node for seat, node in seats.items()}
        self.secret = secrets.token_hex(16)
        self.address = ray.util.get_node_ip_address()
        listener = socket.create_server((self.address, 0), backlog=1024)
        self.store_address = listener.getsockname()
        self.store = serve_store(listener)
        self.spawner = Spawner(self.setup, self.run_id, self.job.slot_resource)
        self.lifelines = Lifelines(self.secret, self.joined, self.said, self.gone)
        self.recoveries = Recoveries(self.job.cells)
        self.scribe = Scribe(self.job, Path(rundir), self.workload, start)
        self.rundir = Path(rundir)
        self.nodes: dict[str, Node] = {}
        self.node_of: dict[str, str] = {}
        """Of every worker that ever spoke, until its node is lost."""
        self.committed: dict[str, Any] = {}
        """The newest commit record: what a laggard needs to catch up."""
        self.start, self.about = start, about
        self.stopped = 0.0
        """Monotonic time of the last stop."""
        self.ended = asyncio.Event()
        self.outcome = ("failed", "the controller ended early")
        shape = Shape(self.job.cells, self.job.workers_per_cell, self.job.steps, self.micro_batches)
        self.state = State.new(shape, {}, start)

    def __repr__(self) -> str:
        return controller_name(self.run_id)

    def micro_batches(self, step: int) -> int:
        first, last = self.workload.samples(step)
        return batching.count(first, last, self.job.workers_per_cell, self.workload.micro_batch)

    def setup(self, name: str, node: str, seat: Seat | None) -> Setup:
        home = None if seat is None else (seat.cell, seat.rank)
        job = self.job.model_dump(mode="json")
        return Setup(name, node, home, job, self.rundir, self.lifeline, self.store_address, self.secret)

    # ---- life

    async def run(self) -> tuple[str, str]:
        """Run the job to its end; returns (status, reason). Called once, by the driver, which need not stay."""
        self.lifeline = await self.lifelines.open(self.address)
        tracker = (
            tracking.start(self.rundir, self.job.mlflow.uri, self.job.mlflow.experiment)
            if self.job.mlflow.enabled
            else None
        )
        try:
            self.scribe.started(self.start, self.about)
            await self.watch_nodes()
            homes = {seat: self.spawner.spawn(self.nodes[node], seat) for seat, node in self.seats.items()}
            self.state = State.new(self.state.shape, homes, self.start)
            chores = asyncio.create_task(self.chores())
            await self.ended.wait()
            chores.cancel()
        finally:
            await asyncio.to_thread(self.finish, tracker)
            # the driver removes this actor once it has read the outcome; it may be gone, and nothing else would
            myself = ray.get_runtime_context().current_actor
            asyncio.get_running_loop().call_later(3.0, ray.kill, myself)
        return self.outcome

    async def stop(self, reason: str) -> None:
        """End the run early, whatever it is doing."""
        self.outcome = ("stopped", reason)
        self.ended.set()

    async def alive(self) -> bool:
        return True

    def finish(self, tracker: subprocess.Popen[bytes] | None) -> None:
        """Reap every worker, then close the record: nothing of the run is left when `run.json` says that it ended."""
        for name in list(self.spawner.started):
            self.spawner.kill(name)
        deadline = time.monotonic() + 5.0
        while self.lifelines.lines and time.monotonic() < deadline:
            time.sleep(0.05)
        self.lifelines.close()
        self.scribe.ended(*self.outcome, self.state.committed)
        subprocess.run([sys.executable, "-m", "shoal.report", str(self.rundir)], check=False)
        if tracker is not None:
            problem = tracking.finish(tracker, self.rundir)
            if problem:
                print(f"shoal: {problem}", flush=True)

    async def chores(self) -> None:
        """Once a second: nodes, spares, silent and late workers, the status file."""
        while True:
            try:
                await self.watch_nodes()
                self.spare()
                self.fence()
                self.scribe.status(self.state, self.lifelines.lines)
            except Exception as error:  # one failed look at the cluster must not end a run that trains
                print(f"shoal controller: {type(error).__name__}: {error}", flush=True)
            await asyncio.sleep(1.0)

    async def watch_nodes(self) -> None:
        found = {node.name: node for node in await asyncio.to_thread(living, self.job.slot_resource)}
        for name in self.nodes.keys() - found.keys():
            actors = [worker for worker, node in self.node_of.items() if node == name]
            for worker in actors:
                del self.node_of[worker]
            self.scribe.event("node_lost", node=name, actors=actors)
        self.nodes = found

    def spare(self) -> None:
        """Keep warm spares on free slots, once the run is under way."""
        if self.state.generation < 0 and self.state.expected:
            return
        seats = self.job.cells * self.job.workers_per_cell
        limit = None if self.job.spares == "all" else self.job.spares
        held = self.spawner.held().elements()
        for name in spares_wanted(self.nodes.values(), {}, held, seats, limit)[:2]:
            self.spawner.spawn(self.nodes[name], None)

    def fence(self) -> None:
        """Take for dead who has been silent too long, or never spoke."""
        for worker, why in self.spawner.late(self.timeouts.start, set(self.nodes)):
            self.spawner.kill(worker)
            self.on(Lost(worker, why))
        now = time.monotonic()
        late = self.state.mode == "draining" and now - self.stopped > self.timeouts.acknowledge
        mute = set(unanswered(self.state)) if late else set()
        for line in list(self.lifelines.lines.values()):
            silence = now - line.heard
            if silence > self.timeouts.patience:
                self.cut(line, f"silent for {silence:.0f} s")
            elif line.worker in mute:
                self.cut(line, f"did not answer a stop within {self.timeouts.acknowledge:.0f} s")

    def cut(self, line: Line, why: str) -> None:
        line.writer.close()
        del self.lifelines.lines[line.worker]
        self.gone(line, why)

    # ---- what workers say

    def joined(self, line: Line) -> None:
        started = self.spawner.started.get(line.worker)
        if started is None:
            line.writer.close()
            return
        started.heard = True
        self.node_of[line.worker] = line.node
        self.scribe.event("worker_ready", actor=line.worker, node=line.node, pid=line.pid)
        self.on(Joined(line.worker, line.node, Seat(*line.home) if line.home else None))

    def gone(self, line: Line, why: str) -> None:
        if self.ended.is_set():
            return
        now, wall = time.monotonic(), time.time()
        seat = self.state.seat(line.worker)
        coords = None if seat is None else {"stage": 0, "shard": seat.rank}
        cell = None if seat is None else seat.cell
        fields = {"actor": line.worker, "node": line.node, "pid": line.pid, "cell": cell, "coords": coords}
        self.scribe.event("death", **fields, how=why, step=self.state.committed)
        if seat is not None and self.state.cells[seat.cell].phase == "live":
            self.recoveries.died(seat.cell, line.worker, line.node, why, wall - (now - line.heard), wall)
        self.spawner.kill(line.worker)
        self.on(Lost(line.worker, why))

    def said(self, line: Line, message: dict[str, Any]) -> None:
        worker, generation = line.worker, message.get("generation", -1)
        match message["type"]:
            case "commit":
                if generation == self.state.generation:
                    self.commit(message)
                self.on(Committed(worker, generation, message["steps"]))
            case "evaluated":
                if generation == self.state.generation and message["steps"] > self.state.evaluated:
                    self.scribe.event("evaluation", step=message["steps"], **message["metrics"])
                self.on(Evaluated(worker, generation, message["steps"]))
            case "ready":
                self.on(Ready(worker, message["cell"], message["attempt"]))
            case "ack":
                ack = Ack(message["steps"], message["evaluated"], tuple(message["done"]), message["out"])
                self.on(Acked(worker, generation, ack))
            case "adopted":
                seat = self.state.seat(worker)
                if seat is not None and message["bytes"]:
                    self.recoveries.copied(seat.cell, message["state"])
            case "failed":
                if message["trace"]:
                    self.scribe.event("error", actor=worker, step=self.state.committed, trace=message["trace"])
                where, attempt = message["where"], message.get("attempt", -1)
                self.on(Failed(worker, generation, where, message["message"], attempt))
            case "finished":
                self.on(Finished(worker, generation))
            case "checkpoint_failed":
                self.scribe.event("checkpoint_failed", step=message["steps"], reason=message["reason"])
            case "checkpoint":
                fields = {key: message[key] for key in ("path", "seconds", "bytes")}
                self.scribe.event("checkpoint", step=message["steps"], **fields)
                self.on(Checkpointed(message["steps"]))

    def commit(self, message: dict[str, Any]) -> None:
        """The first word of a committed step is its record."""
        if self.committed.get("steps", -1) < message["steps"] and message["steps"] > self.state.committed:
            self.committed = message
            self.scribe.step(message, self.state.generation)
            for record in self.recoveries.step(list(self.state.live), time.time()):
                self.scribe.event("recovery", **record)

    # ---- decisions into effects

    def on(self, event: Event) -> None:
        if self.ended.is_set():
            return
        self.state, actions = decide(self.state, event)
        for action in actions:
            self.act(action)

    def act(self, action: Action) -> None:
        match action:
            case Form(cell, attempt, members, restore):
                self.recoveries.formed(cell, time.time())
                order = {"type": "form", "cell": cell, "attempt": attempt, "size": len(members), "restore": restore}
                for rank, worker in enumerate(members):
                    self.lifelines.send(worker, order | {"rank": rank})
            case Stop(generation, broken, workers):
                self.stopped = time.monotonic()
                for worker in workers:
                    self.lifelines.send(worker, {"type": "stop", "generation": generation, "broken": broken})
            case Raise(generation, steps, workers):
                assert self.committed["steps"] == steps, (steps, self.committed.get("steps"))
                order = {key: self.committed[key] for key in ("stats", "norm_sq")}
                order |= {"type": "raise", "generation": generation, "takers": self.committed.get("takers", [])}
                for worker in workers:
                    self.lifelines.send(worker, order)
            case Generation():
                self.recoveries.generation(list(action.cells), time.time())
                for crew in action.cells.values():
                    for worker in crew:
                        self.lifelines.send(worker, {"type": "generation", **asdict(action)})
                self.scribe.generation(action, self.node_of)
            case Rewind(steps, lost):
                self.recoveries.rewound(lost)
                self.committed = {}
                self.scribe.rewound(steps)
            case Journal(kind, fields):
                self.scribe.event(kind, **fields)
                if kind == "decision":
                    self.recoveries.decision(fields["rung"], fields["cells"], fields["reason"])
            case End(status, reason):
                self.outcome = (status, reason)
                self.ended.set()
