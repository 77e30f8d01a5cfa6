"""A worker's life: form a cell, live through generations, answer stops, and never decide anything by itself.

Orders come through the lifeline's inbox. While a worker trains it looks at the inbox only where it waits for other
cells: any order that arrives there ends the generation for it (`Stopped`), since the controller speaks to a training
worker for no other reason than to stop it.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shoal import checkpoint
from shoal.config import Job
from shoal.timeouts import Timeouts
from shoal.worker.groups import Groups, Stopped, leave_world
from shoal.worker.link import Link
from shoal.worker.step import CellBroken, Member, Step, world_broke
from shoal.worker.transfer import copy_state
from shoal.workload import Workload

__all__ = ["Loop"]


class Loop:
    """The training thread of one worker.

    `rundir`: where checkpoints go. `name`: the worker's own, as the record shows it.
    """

    def __init__(
        self, name: str, job: Job, workload: Workload, rundir: Path, link: Link, store: tuple[str, int]
    ) -> None:
        self.name, self.job, self.workload, self.rundir, self.link = name, job, workload, rundir, link
        timeouts = Timeouts(job.patience)
        self.groups = Groups(store, timeouts.collective, timeouts.build, lambda: not link.inbox.empty())
        self.seat: tuple[int, int] | None = None
        self.step: Step | None = None
        self.saver: checkpoint.Saver | None = None
        self.generation = -1
        self.phase = "spare"
        self.position = (-1, -1)
        """(steps, evaluated) when this worker last left a cell."""

    def progress(self) -> dict[str, Any]:
        """What a sign of life says."""
        return {"phase": self.phase, "steps": self.step.steps if self.step else -1}

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

    def fail(self, where: str, error: Exception, **more: Any) -> None:
        """Tell the controller what happened; it decides what follows."""
        self.phase = "failed"
        text = "".join(traceback.format_exception(error)) if where == "code" else ""
        message = f"{type(error).__name__}: {error}"
        self.link.send(
            {"type": "failed", "generation": self.generation, "where": where, "message": message, "trace": text, **more}
        )

    def leave(self) -> None:
        """Leave the cell: drop everything that lives in its world, then the world."""
        self.step = self.saver = self.seat = None
        leave_world()
        self.phase = "spare"

    def form(self, order: dict[str, Any]) -> None:
        """Build the world of a cell and this worker's share of the model in it."""
        self.leave()
        cell, attempt, rank, size = order["cell"], order["attempt"], order["rank"], order["size"]
        key = f"cell/{cell}/{attempt}"
        self.phase = "forming"
        try:
            self.groups.meet(key, rank, size)
            self.groups.world(key, rank, size)
            replica = self.workload.build(self.job.seed)
            group = dist.new_group(backend="gloo")
            self.step = Step(Member(cell, rank, size), self.workload, replica, self.groups)
            if order["restore"] is not None:
                if order["restore"] > 0:
                    folder = self.rundir / "checkpoints" / f"step-{order['restore']:08d}"
                    replica.loaded(checkpoint.load(folder, replica.state_dict(), group))
                self.step.steps = self.step.saved = order["restore"]
            self.saver = checkpoint.Saver(
                self.rundir / "checkpoints",
                rank,
                group,
                self.job.checkpoint.keep,
                {"run_id": self.job.run_id, "workers": size, "workload": self.job.workload},
                self.saved,
                self.not_saved,
            )
        except Stopped:
            self.leave()
            raise
        except RuntimeError as error:
            self.leave()
            if not world_broke(error):
                raise
            self.fail("form", error, attempt=attempt)
            return
        self.seat = (cell, rank)
        self.phase = "ready"
        self.link.send({"type": "ready", "cell": cell, "attempt": attempt})

    def saved(self, steps: int, path: Path, seconds: float, size: int) -> None:
        self.link.send({"type": "checkpoint", "steps": steps, "path": str(path), "seconds": seconds, "bytes": size})

    def not_saved(self, steps: int, reason: str) -> None:
        self.link.send({"type": "checkpoint_failed", "steps": steps, "reason": reason})

    def live(self, order: dict[str, Any]) -> None:
        """Take part in a generation until it ends."""
        assert self.step is not None, "a generation was sent to a worker that stands in no cell"
        self.generation = order["generation"]
        try:
            self.adopt(order, self.step)
            self.train(self.step)
        except CellBroken as error:
            steps, evaluated = self.step.steps, self.step.evaluated
            cause = error.__cause__ or error
            self.leave()  # closes the sockets: peers of the cell that wait for this worker are freed
            self.fail("cell", RuntimeError(str(cause)), steps=steps, evaluated=evaluated)
            self.position = (steps, evaluated)
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
        step.enter(order["generation"], cells, crew, order["evaluated"])
        joined = time.monotonic()
        copied = 0
        for source, target in order["heals"]:
            if step.member.cell not in (source, target):
                continue
            rank = step.member.rank
            group = self.groups.build(f"heal/{self.generation}/{target}/{rank}", int(step.member.cell == target), 2)
            try:
                copied += copy_state(self.groups, group, step.replica.tensors(), source=step.member.cell == source)
            finally:
                self.groups.leave(group)
            if step.member.cell == target:
                step.healed(order["steps"])
        if step.steps != order["steps"]:
            raise AssertionError(f"{self.name} stands at step {step.steps}, its generation at {order['steps']}")
        step.todo = list(order["todo"][str(step.member.cell)])
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
            self.report(step, step.run())

    def report(self, step: Step, record: dict[str, Any]) -> None:
        """Tell the controller of a commit at once: nobody else may rely on it before."""
        if not self.job.audit.samples:
            for key in ("takers", "crew", "cell_of"):
                record.pop(key)
        self.link.send({"type": "commit", "generation": self.generation, **record})

    def boundary(self, step: Step) -> None:
        """What happens between two steps: evaluation and checkpoints, at the same steps whatever died meanwhile."""
        last = step.steps == self.job.steps
        due = self.job.evaluation
        if due.enabled and step.evaluated < step.steps:
            if last or step.steps == 0 or (due.every and step.steps % due.every == 0):
                self.phase = "evaluating"
                metrics = step.evaluate()
                self.link.send(
                    {"type": "evaluated", "generation": self.generation, "steps": step.steps, "metrics": metrics}
                )
            step.evaluated = step.steps
        every = self.job.checkpoint.every
        due_now = step.steps > 0 and (last or (every and step.steps % every == 0))
        if due_now and step.saved < step.steps and step.first_cell() and self.saver is not None:
            self.phase = "saving"
            self.groups.until(lambda: self.saver is None or not self.saver.busy())
            try:
                self.saver.save(step.steps, self.generation, step.replica.state_dict())
            except RuntimeError as error:
                raise CellBroken from error
            step.saved = step.steps
            if last:
                self.groups.until(lambda: self.saver is None or not self.saver.busy())

    def stop(self, order: dict[str, Any]) -> None:
        """Leave the generation (and a broken cell's world) and say how far this worker is."""
        if self.seat is not None and self.seat[0] in order["broken"]:
            assert self.step is not None
            self.position = (self.step.steps, self.step.evaluated)
            self.leave()
        self.acknowledge(order["generation"])

    def acknowledge(self, generation: int) -> None:
        if self.step is not None:
            self.phase = "stopped"
            steps, evaluated, done, out = self.step.steps, self.step.evaluated, self.step.done, False
        else:
            (steps, evaluated), done, out = self.position, [], True
        self.link.send(
            {"type": "ack", "generation": generation, "steps": steps, "evaluated": evaluated, "done": done, "out": out}
        )

    def catch_up(self, order: dict[str, Any]) -> None:
        """Commit the pending step because somebody has: its sums are complete here too."""
        assert self.step is not None
        self.report(self.step, self.step.commit(order["stats"], order["norm_sq"], order["takers"]))
        self.acknowledge(order["generation"])
