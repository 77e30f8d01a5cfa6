"""A worker's life: form a cell, live through generations, answer stops, and never decide anything by itself.

Orders come through the lifeline's inbox. While a worker trains it looks at the inbox only where it waits for other
cells: any order that arrives there ends the generation for it (`Stopped`), since the controller speaks to a training
worker for no other reason than to stop it.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shoal import checkpoint
from shoal.config import Job
from shoal.record import lease
from shoal.timeouts import Timeouts
from shoal.worker.copies import Copies, Keeper, LostCopy
from shoal.worker.courier import Courier
from shoal.worker.groups import WORLD, Groups, Sockets, Stopped, leave_world
from shoal.worker.inject import Injector
from shoal.worker.link import Link
from shoal.worker.main import Meeting, greeting
from shoal.worker.rendezvous import Rendezvous
from shoal.worker.step import CellBroken, Member, Step, world_broke
from shoal.worker.transfer import copy_state
from shoal_core.workload import ORIGIN, Workload, build_shard

__all__ = ["Loop"]


def fence(pid: int, worker: str) -> None:
    """End another worker of this run on this node that is taken for dead: a frozen process obeys nothing but this.

    Its title is checked first: the pid may have been given to another process meanwhile.
    """
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        if worker.encode() in title or b"WorkerActor" in title:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it is gone


@dataclass(frozen=True)
class Kept:
    """What a worker that left its cell's world still holds: its shard of the state after `steps` committed steps."""

    steps: int
    evaluated: int
    rank: int
    tensors: list[Any]


class Loop:
    """The training thread of one worker.

    `rundir`: where checkpoints go. `name`: the worker's own, as the record shows it; `home`: the seat it was started
    for; `address`: the node's own, to serve copies of snapshots at.
    """

    def __init__(
        self,
        name: str,
        node: str,
        home: tuple[int, int] | None,
        job: Job,
        workload: Workload,
        rundir: Path,
        address: str,
    ) -> None:
        self.name, self.node, self.home, self.job, self.workload, self.rundir = name, node, home, job, workload, rundir
        timeouts = Timeouts(job.patience)
        self.link = Link(timeouts)
        self.secret = ""
        """Of the controller that is obeyed; proves to other workers too that this one is of the run."""
        self.session = ""
        """Whose the run is (`record.lease`), by that controller's word."""
        self.copies: Copies | None = None
        if job.snapshots.recalls:
            self.copies = Copies(address, self.holds, timeouts.collective, lambda: self.secret)
        self.courier = Courier(timeouts, lambda: self.secret)
        self.link.progress, self.link.urgent = self.progress, self.urgent
        self.rendezvous = Rendezvous(lambda message: self.link.send(message, keep=False))
        self.link.dropped = self.rendezvous.lost
        self.groups = Groups(timeouts.collective, timeouts.build, self.called, self.rendezvous)
        self.sockets = Sockets()
        self.injector = Injector(job.inject, rundir)
        self.origin: dict[str, Any] = job.workload.get(ORIGIN) or {}
        """Where the session began, and with what (`shoal.resume.Origin`)."""
        self.seat: tuple[int, int] | None = None
        self.attempt = -1
        self.step: Step | None = None
        self.saver: checkpoint.Saver | None = None
        self.generation = -1
        self.phase = "spare"
        self.broken = False
        """The last stop said that this worker's cell is broken."""
        self.kept: Kept | None = None
        self.pausing = -1
        """The generation that is to be left in order."""
        self.over = False
        """The generation is over; only what peers of the cell wait for is still done."""

    def meet(self, meeting: Meeting) -> None:
        """Take orders from this controller from now on."""
        self.secret, self.session = meeting.secret, meeting.session
        self.link.connect(meeting.lifeline, meeting.secret, self.hello)

    def called(self) -> bool:
        """Whether to walk away from what others have a part in."""
        return self.over or not self.link.inbox.empty()

    def hello(self) -> dict[str, Any]:
        """Who this is, and what it is doing (for a controller that came back)."""
        where = {"seat": self.seat, "attempt": self.attempt, "generation": self.generation, "phase": self.phase}
        copies = {} if self.copies is None else {"address": self.copies.address}
        steps = -1 if self.step is None else self.step.steps
        return greeting(self.name, self.node, self.home, **where, steps=steps, copies=copies)

    def progress(self) -> dict[str, Any]:
        """What a sign of life says."""
        step = self.step
        phase = step.phase if step is not None and self.phase == "training" else self.phase
        return {"phase": phase, "steps": step.steps if step is not None else -1}

    def urgent(self, order: dict[str, Any]) -> bool:
        """In the link's thread: what cannot wait for the training thread, and what must not interrupt it."""
        if self.rendezvous.heard(order):
            return True
        match order["type"]:
            case "stop":
                seat = self.seat
                if seat is not None and seat[0] in order["broken"]:
                    self.sockets.cut()  # it may be blocked in a collective of the cell
                return False
            case "pause":
                self.pausing = order["generation"]
                return True
            case "keep":
                self.courier.keeper = Keeper.read(order["to"]) if order["to"] is not None else None
                return True
            case "fence":
                fence(order["pid"], order["worker"])
                return True
        return False

    def run(self) -> None:
        """Serve orders for ever; the process is ended by the lifeline."""
        while True:
            order = self.link.inbox.get()
            try:
                match order["type"]:
                    case "form":
                        self.form(order)
                    case "generation":
                        self.live(order)
                    case "stop":
                        self.stop(order)
                    case "raise":
                        self.catch_up(order)
            except Stopped:
                continue
            except Exception as error:
                self.fail("code", error)

    def fail(self, where: str, error: BaseException, **more: Any) -> None:
        """Tell the controller what happened; it decides what follows."""
        self.phase = "failed"
        text = "".join(traceback.format_exception(error)) if where == "code" else ""
        message = f"{type(error).__name__}: {'; '.join(line.strip() for line in str(error).splitlines())}"
        self.link.send(
            {"type": "failed", "generation": self.generation, "where": where, "message": message, "trace": text, **more}
        )

    def leave(self) -> None:
        """Leave the cell: drop everything that lives in its world but the state, then the world."""
        step = self.step
        if step is not None and step.steps >= 0 and not step.torn:
            tensors = [tensor.detach() for tensor in step.tensors()]
            self.kept = Kept(step.steps, step.evaluated, step.member.rank, tensors)
        self.step = self.saver = self.seat = step = None
        leave_world()
        self.phase = "spare"

    def form(self, order: dict[str, Any]) -> None:
        """Build the world of a cell and this worker's share of the model in it."""
        self.leave()
        cell, attempt, rank, size = order["cell"], order["attempt"], order["rank"], order["size"]
        self.rendezvous.scope = f"cell/{cell}/{attempt}"
        self.phase = "forming"
        try:
            self.groups.meet("world", size)
            self.sockets.mark()
            self.groups.world("world", rank, size)
            replica = build_shard(self.workload, self.job.seed)
            group = dist.new_group(backend="gloo")
            self.sockets.taken(partial(self.groups.mentioned, WORLD))
            self.step = Step(Member(cell, rank, size), self.workload, replica, self.groups, self.job, self.injector)
            self.step.pausing = lambda: self.pausing == self.generation
            if order["restore"] is not None:
                self.restore(self.step, order["restore"], group)
            if order["keep"]:
                self.resume(self.step)
            if order["recall"] is not None:
                self.courier.fetch(self.step, order["recall"])
            self.saver = checkpoint.Saver(
                self.rundir / "checkpoints",
                rank,
                group,
                self.job.checkpoint.keep,
                {"run_id": self.job.run_id, "workers": size, "workload": self.job.workload},
                self.saved,
                self.not_saved,
            )
        except Exception as error:
            self.leave()
            damaged: dict[str, Any] = {}
            if isinstance(error, checkpoint.Damaged):
                damaged = {"damaged": {"steps": order["restore"], "reason": error.problem}}
            if not (damaged or isinstance(error, LostCopy) or (isinstance(error, RuntimeError) and world_broke(error))):
                raise
            self.fail("form", error, attempt=attempt, **damaged)
            return
        self.seat, self.attempt, self.broken = (cell, rank), attempt, False
        self.phase = "ready"
        self.link.send({"type": "ready", "cell": cell, "attempt": attempt})

    def restore(self, step: Step, steps: int, group: Any) -> None:
        """Take the state of a checkpoint; that of 0 steps is the initial one unless the session began with one (an
        imported or extended model).

        Raises:
            Damaged: the checkpoint is not what was committed. Unfit: it is of another state.
            RuntimeError: a peer is gone.
        """
        folder = self.rundir / "checkpoints" / f"step-{steps:08d}"
        if steps or self.origin.get("start") == 0:
            step.replica.loaded(checkpoint.load(folder, step.state_dict(), group))
        step.steps = step.saved = steps

    def resume(self, step: Step) -> None:
        """Go on from the state this worker kept; what it kept it with stays until a generation stands."""
        kept = self.kept
        assert kept is not None, "told to go on from a state that is not held here"
        assert kept.rank == step.member.rank, "told to go on from another rank's shard"
        for mine, held in zip(step.tensors(), kept.tensors, strict=True):
            mine.copy_(held)
        step.healed(kept.steps)
        step.evaluated = kept.evaluated

    def holds(self, rank: int, steps: int, era: int) -> None:
        """In a thread of `copies`: one has arrived whole."""
        self.link.send({"type": "kept", "rank": rank, "steps": steps, "era": era})

    def saved(self, steps: int, path: Path, seconds: float, size: int) -> None:
        self.link.send({"type": "checkpoint", "steps": steps, "path": str(path), "seconds": seconds, "bytes": size})

    def not_saved(self, steps: int, reason: str) -> None:
        self.link.send({"type": "checkpoint_failed", "steps": steps, "reason": reason})

    def live(self, order: dict[str, Any]) -> None:
        """Take part in a generation until it ends."""
        step = self.step
        assert step is not None, "a generation was sent to a worker that stands in no cell"
        self.generation = order["generation"]
        self.rendezvous.scope = f"generation/{self.generation}"

        def run() -> None:
            self.adopt(order, step)
            self.train(step)

        self.guarded(run)

    def guarded(self, run: Callable[[], None]) -> None:
        """Do what needs peers, and tell the controller if they fail.

        Raises:
            Stopped: the generation ended.
        """
        try:
            run()
        except CellBroken as error:
            cause = error.__cause__ or error
            self.leave()  # closes the sockets: peers of the cell that wait for this worker are freed
            self.fail("cell", RuntimeError(str(cause)))
        except RuntimeError as error:
            if not world_broke(error):
                raise
            self.fail("between", error)

    def adopt(self, order: dict[str, Any], step: Step) -> None:
        """Join the groups of a generation, and copy state to or from a cell that is being healed."""
        start = time.monotonic()
        self.phase = "joining"
        cells = sorted(int(cell) for cell in order["cells"])
        crew = [worker for cell in cells for worker in order["cells"][str(cell)]]
        heals = [(source, target) for source, target in order["heals"] if step.member.cell in (source, target)]
        copying = step.enter(cells, crew, order["evaluated"], heals)
        joined = time.monotonic()
        copied = 0
        try:
            for (source, target), group in zip(heals, copying, strict=True):
                step.inject("heal", step=order["steps"])
                copied += copy_state(self.groups, group, step.tensors(), source=step.member.cell == source)
                if step.member.cell == target:
                    step.healed(order["steps"])
        finally:
            self.groups.leave(*copying)
        if step.steps != order["steps"]:
            raise AssertionError(f"{self.name} stands at step {step.steps}, its generation at {order['steps']}")
        step.todo = list(order["todo"][str(step.member.cell)])
        # all of a cell go in, or none: inside a step nobody can be told that a peer turned round
        self.groups.meet(f"begin/{step.member.cell}", step.member.size)
        self.kept = None
        if self.job.snapshots.every:
            self.courier.keep(step)
        if order["save"]:
            self.save(step)
        if order["halt"]:
            self.phase = "finished"
            self.groups.until(lambda: False)
        seconds = {"join": joined - start, "state": time.monotonic() - joined}
        self.link.send({"type": "adopted", "generation": self.generation, "bytes": copied, **seconds})

    def train(self, step: Step) -> None:
        """Commit steps until the generation ends or there are none left."""
        while True:
            self.boundary(step)
            if step.steps >= self.job.steps:
                self.phase = "finished"
                self.link.send({"type": "finished", "generation": self.generation})
                self.groups.until(lambda: False)
            self.phase = "training"
            record = step.run()
            self.report(step, record)
            if record["pause"]:
                self.acknowledge(self.generation)
                self.groups.until(lambda: False)

    def report(self, step: Step, record: dict[str, Any]) -> None:
        """Tell the controller of a commit at once: nobody else may rely on it before."""
        if not self.job.audit.samples:
            for key in ("takers", "crew", "cell_of"):
                record.pop(key)
        self.link.send({"type": "commit", "generation": self.generation, **record})
        for note in step.replica.notes():
            self.link.send({"type": "note", "generation": self.generation, "step": step.steps - 1, **note})
        every = self.job.snapshots.every
        if every and step.steps % every == 0 and record["rolled_back"] is None:
            self.courier.keep(step)

    def boundary(self, step: Step) -> None:
        """What happens between two steps: evaluation and checkpoints, at the same steps whatever died meanwhile."""
        last = step.steps == self.job.steps
        due = self.job.evaluation
        if due.enabled and step.evaluated < step.steps:
            began = step.steps == (self.origin.get("start") or 0)  # what was loaded is told with its bits a byte
            if last or began or (due.every and step.steps % due.every == 0):
                self.phase = "evaluating"
                metrics = step.evaluate()
                self.link.send(
                    {"type": "evaluated", "generation": self.generation, "steps": step.steps, "metrics": metrics}
                )
            step.evaluated = step.steps
        every = self.job.checkpoint.every
        due_now = step.steps > 0 and (last or (every and step.steps % every == 0))
        if due_now and step.first_cell():
            if step.saved < step.steps:
                self.save(step)
            if last:
                self.written()
                if self.saver is not None and self.saver.problem is not None:
                    self.save(step)  # once more: no other save follows
                    self.written()

    def written(self) -> None:
        """Wait for the checkpoint that is being written."""
        self.groups.until(lambda: self.saver is None or not self.saver.busy())

    def save(self, step: Step) -> None:
        """Begin a checkpoint of the committed state, after the one before it. If another session has the run, this
        worker ends instead: its controller, who would have ended it, is gone."""
        assert self.saver is not None
        try:
            lease.check(self.rundir, self.session)
        except lease.Lost as error:
            raise SystemExit(str(error)) from error
        self.phase = "saving"
        self.saver.join()
        try:
            samples, _ = self.workload.samples(step.steps)
            self.saver.save(step.steps, self.generation, step.state_dict(), samples=samples, finite=step.finite)
        except RuntimeError as error:
            raise CellBroken from error
        step.saved = step.steps
        step.inject("checkpoint")

    def stop(self, order: dict[str, Any]) -> None:
        """Leave the generation and say how far this worker is; leave a broken cell's world unless the pending step can
        still be committed here."""
        self.broken = self.seat is not None and self.seat[0] in order["broken"]
        if self.broken and self.step is not None and (self.step.total is None or self.step.torn):
            self.leave()
        self.acknowledge(order["generation"])

    def acknowledge(self, generation: int) -> None:
        step, kept = self.step, self.kept
        self.phase = "spare" if step is None else "stopped"
        if step is not None and not step.torn:
            holds = (step.steps, step.evaluated, step.member.rank)
        else:
            holds = (kept.steps, kept.evaluated, kept.rank) if kept is not None and step is None else (-1, -1, -1)
        self.link.send(
            {
                "type": "ack",
                "generation": generation,
                "steps": holds[0],
                "evaluated": holds[1],
                "rank": holds[2],
                "done": step.done if step is not None else [],
                "out": step is None,
                "whole": step is not None and step.total is not None and not step.torn,
            }
        )

    def catch_up(self, order: dict[str, Any]) -> None:
        """Commit the pending step because somebody has: its sums are complete here too. Peers of the cell may have gone
        on already and wait for this worker inside the next step: go there with them."""
        step = self.step
        if step is not None and step.steps < order["steps"]:
            self.report(step, step.commit(order["stats"], order["norm_sq"], order["takers"]))
            if self.broken:
                self.leave()
            elif step.steps < self.job.steps:
                self.over = True
                try:
                    self.guarded(lambda: self.train(step))
                except Stopped:
                    pass
                finally:
                    self.over = False
        self.acknowledge(order["generation"])
