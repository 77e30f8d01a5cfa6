"""One worker's part in one generation: to join it, to commit steps until it ends, and what is due between two steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from shoal.protocol import orders
from shoal.protocol.said import Ack, Phase
from shoal.record import lease
from shoal.worker.step import CellBroken, Commit, Step
from shoal.worker.transfer import copy_state
from shoal.worker.voice import Voice
from shoal.worker.world import RetainedState, World

__all__ = ["Membership", "ack_of", "ack_without"]


def ack_of(step: Step) -> Ack:
    """How far a worker is that stands in its cell."""
    holds = (-1, -1, -1) if step.torn else (step.steps, step.evaluated, step.member.rank)
    whole = step.total is not None and not step.torn
    return Ack(holds[0], holds[1], tuple(step.sums.done), out=False, whole=whole, rank=holds[2])


def ack_without(held: RetainedState | None) -> Ack:
    """How far a worker is that stands in no cell."""
    return Ack(-1, out=True) if held is None else Ack(held.steps, held.evaluated, out=True, rank=held.rank)


class Membership:
    """`session`: whose the run is (`record.lease`), by the word of the controller that is obeyed."""

    def __init__(self, world: World, voice: Voice, session: Callable[[], str]) -> None:
        assert world.step is not None, "a generation was sent to a worker that stands in no cell"
        assert world.saver is not None
        self.step, self.saver, self.kit, self.voice, self.session = world.step, world.saver, world.kit, voice, session

    def join(self, order: orders.Generation) -> bool:
        """Build the groups of a generation, and copy state to or from a cell that is being healed. False if no step
        follows.

        Raises:
            Stopped: the generation ended first. CellBroken: a peer inside the cell is gone.
            RuntimeError: a collective between cells failed.
        """
        step, groups = self.step, self.kit.groups
        copying = step.enter(order)
        joined, copied = time.monotonic(), 0
        try:
            for (source, target), group in zip(order.heals, copying, strict=True):
                step.inject("heal", step=order.steps)
                copied += copy_state(groups, group, step.tensors(), source=step.member.cell == source)
                if step.member.cell == target:
                    step.healed(order.steps)
        finally:
            groups.leave(*copying)
        if step.steps != order.steps:
            raise AssertionError(f"{self.voice.name} stands at step {step.steps}, its generation at {order.steps}")
        step.todo = list(order.todo)
        # all of a cell go in, or none: inside a step nobody can be told that a peer turned round
        groups.meet(f"begin/{step.member.cell}", step.member.size)
        if self.kit.job.snapshots.every:
            self.kit.courier.keep(step)
        if order.save:
            self._save()
        if copied:
            self.voice.adopted(copied, time.monotonic() - joined)
        if order.halt:
            self.voice.phase = Phase.FINISHED
        return not order.halt

    def train(self) -> None:
        """Commit steps until all agree to pause or there are none left.

        Raises: as `join`.
        """
        while True:
            self._boundary()
            if self.step.steps >= self.kit.job.steps:
                self.voice.finished()
                return
            self.voice.phase = Phase.INSIDE
            commit = self.step.run()
            self._committed(commit)
            if commit.pause:
                self.voice.acked(self.voice.generation, ack_of(self.step))
                return

    def commit_late(self, order: orders.CommitLate) -> None:
        """Commit the pending step because somebody has: its sums are complete here too."""
        self._committed(self.step.commit(list(order.stats), order.norm_sq, list(order.takers)))

    def _committed(self, commit: Commit) -> None:
        """A step is committed here: nobody else may rely on it before the controller is told."""
        self.voice.committed(commit, self.step)
        every = self.kit.job.snapshots.every
        if every and self.step.steps % every == 0 and commit.rolled_back is None:
            self.kit.courier.keep(self.step)

    def _boundary(self) -> None:
        """What happens between two steps: evaluation and checkpoints, at the same steps whatever died meanwhile."""
        step, job = self.step, self.kit.job
        last = step.steps == job.steps
        due = job.evaluation
        if due.enabled and step.evaluated < step.steps:
            began = step.steps == (self.kit.origin.get("start") or 0)  # what was loaded is told with its bits a byte
            if last or began or (due.every and step.steps % due.every == 0):
                self.voice.phase = Phase.EVALUATING
                self.voice.evaluated(step.steps, step.evaluate())
            step.evaluated = step.steps
        every = job.checkpoint.every
        due_now = step.steps > 0 and (last or (every and step.steps % every == 0))
        if due_now and step.first_cell():
            if step.saved < step.steps:
                self._save()
            if last:
                self._written()
                if self.saver.problem is not None:
                    self._save()  # once more: no other save follows
                    self._written()

    def _written(self) -> None:
        """Wait for the checkpoint that is being written."""
        self.kit.groups.until(lambda: not self.saver.busy())

    def _save(self) -> None:
        """Begin a checkpoint of the committed state, after the one before it. If another session has the run, this
        worker ends instead: its controller, who would have ended it, is gone."""
        step = self.step
        try:
            lease.check(self.kit.rundir, self.session())
        except lease.LeaseLost as error:
            raise SystemExit(str(error)) from error
        self.voice.phase = Phase.SAVING
        self.saver.join()
        try:
            samples, _ = self.kit.workload.samples(step.steps)
            state = step.state_dict()
            self.saver.save(step.steps, self.voice.generation, state, samples=samples, finite=step.finite)
        except RuntimeError as error:
            raise CellBroken from error
        step.saved = step.steps
        step.inject("checkpoint")
