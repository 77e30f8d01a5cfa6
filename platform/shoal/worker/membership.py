"""One worker's part in one generation: to join it, to commit steps until it ends, what is due between two steps; and
what it says of all that."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.names import node_of
from shoal.protocol import orders
from shoal.protocol.said import (
    Ack,
    Acked,
    Adopted,
    Beat,
    Checkpointed,
    Committed,
    CopyHeld,
    Damage,
    Evaluated,
    Failed,
    Finished,
    Noted,
    NotSaved,
    Number,
    Phase,
    Ready,
    Where,
)
from shoal.saving.deadline import Notice
from shoal.saving.leaving import Leaves
from shoal.worker.calls import Calls
from shoal.worker.faults import ENDS, meaning, memory_figures
from shoal.worker.link import Link
from shoal.worker.ownership import end_if_lost
from shoal.worker.step import CellBroken, Commit, Step
from shoal.worker.transfer import copy_state
from shoal.worker.world import RetainedState, World

__all__ = ["Membership", "Voice", "ack_of", "ack_without"]

LAST_PAUSES = (0.0, 1.0, 4.0)
"""Seconds after which the save of the last state is tried again."""
UNSAID = 8
"""Commits that are kept to be said: whoever should have said them may be cut off for a while before it is noticed."""


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
        self.pace = world.pace
        self.leaves: Leaves | None = None
        """Of a cell some of whose nodes are about to go, and that nobody can take over from."""

    def join(self, order: orders.Generation) -> bool:
        """Build the groups of a generation, and copy state to or from a cell that is being healed. False if no step
        follows.

        Raises:
            Stopped: the generation ended first. CellBroken: a peer inside the cell is gone.
            RuntimeError: a collective between cells failed.
        """
        step, groups, heard = self.step, self.kit.groups, time.monotonic()
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
        self.pace.entered(order.steps, order.mean)
        step.todo = list(order.todo)
        if order.heals or not groups.transport.keyed:
            # All of a cell go in, or none: inside a step nobody can be told that a peer turned round. Where nothing
            # that can fail was done since the meeting of all, that meeting has decided it.
            groups.meet(f"begin/{step.member.cell}", step.member.size)
        if self.kit.job.snapshots.every:
            self._copy()
        if order.save:
            if order.going:
                self.leaves = Leaves.by(node_of(self.voice.name), order.going, heard)
            self._save(must=order.halt)
        if copied:
            self.voice.adopted(time.monotonic() - joined)
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
            with self.kit.profiler.around(self.step.steps):
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
        self.pace.stepped(commit.seconds)
        if self.step.rhythm.due(self.step.steps) and commit.rolled_back is None:
            self._copy()

    def _copy(self) -> None:
        """Copy the state into memory, and find out what that costs."""
        start = time.monotonic()
        self.kit.courier.keep(self.step)
        if self.step.rhythm.times(self.step.steps):
            self.step.snapshot.arrived()
        self.step.rhythm.copied(self.step.steps, time.monotonic() - start)

    def _boundary(self) -> None:
        """What happens between two steps: evaluation and checkpoints, at the same steps whatever died meanwhile."""
        step, job = self.step, self.kit.job
        last = step.steps == job.steps
        due = job.evaluation
        if due.enabled and step.evaluated < step.steps:
            began = step.steps == (self.kit.origin.get("start") or 0)  # what was loaded is told with its bits a byte
            if last or began or (due.every and step.steps % due.every == 0):
                self.voice.phase = Phase.EVALUATING
                step.measured = step.steps, step.evaluate()
                self.voice.evaluated(*step.measured)
            step.evaluated = step.steps
        if step.steps == 0 or not step.standing.in_first_cell:
            return
        if last:
            self._save_last()
        elif step.saved < step.steps:
            with step.in_cell():
                now = self.saver.may(step.steps, due=self.pace.due(step.steps))
            if self.saver.settled:
                self.pace.heard(self.saver.heard)
            if now:
                self._save()

    def _save_last(self) -> None:
        """Have the state of the last step saved, and wait for it: no other save follows."""
        if self.step.saved < self.step.steps:
            self._save(must=True)
        self._written()
        for pause in LAST_PAUSES:
            if self.saver.problem is None:
                break
            self.kit.groups.pause(pause)
            self._save(must=True)
            self._written()

    def _written(self) -> None:
        """Wait for the checkpoint that is being written."""
        self.kit.groups.until(lambda: not self.saver.busy())

    def _save(self, *, must: bool = False) -> None:
        """Begin a checkpoint of the committed state, after the one before it; `must`: whether or not it fits into the
        time that is left. If another session has the run, this worker ends instead: its controller, who would have
        ended it, is gone."""
        step = self.step
        end_if_lost(self.kit.job.place, self.kit.rundir, self.session())
        self.voice.phase = Phase.SAVING
        self.saver.join()
        try:
            samples, _ = self.kit.workload.samples(step.steps)
            at, figures = step.measured
            bpb = figures.get("bpb") if at == step.steps else None
            about = {"samples": samples, "tokens": self.kit.workload.tokens(samples), "bpb": bpb}
            state = step.state_dict()
            notice = None if self.leaves is None else self._notice(self.leaves, must=must)
            told = self.pace.told(None if notice is None else math.inf if notice.left is None else notice.left)
            with step.in_cell():
                self.saver.save(step.steps, self.voice.generation, state, told, notice, finite=step.finite, **about)
        except RuntimeError as error:
            raise CellBroken from error
        step.saved = step.steps
        self.pace.began(step.steps)
        step.inject("checkpoint")

    def _notice(self, leaves: Leaves, *, must: bool) -> Notice:
        """What this worker says before a save, while nodes of its cell go; `must`: as if nobody knew when."""
        left = None if must else leaves.left(time.monotonic())
        return Notice(leaves.going, left, self.kit.speed.bytes, self.kit.courier.speed)


@dataclass
class Voice:
    """What the worker `name` says of itself: every message of `protocol.said` but its questions is made here.
    `audited`: takers of samples are told; `generation`: the newest it has taken part in.

    Every worker knows what a step did, but one word of each cell is enough: its first worker says each commit. The
    others keep their last ones, and say them as soon as the generation is stopped and before they leave it, since
    whoever would have said it may be dead. What is committed after the stop everybody says at once: a worker that
    nobody knows to be ahead may wait for ever, inside its cell, for one that was stopped behind it.
    """

    name: str
    link: Link
    audited: bool
    calls: Calls
    phase: Phase = Phase.SPARE
    generation: int = -1
    unsaid: deque[Committed] = field(default_factory=lambda: deque(maxlen=UNSAID))
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Of `unsaid`, which the link's thread says too."""

    def beat(self, step: Step | None) -> Beat:
        """The sign of life of a worker with this part in its cell's steps."""
        phase = step.phase if step is not None and self.phase is Phase.INSIDE else self.phase
        return Beat(phase, -1 if step is None else step.steps)

    def ready(self, cell: int, attempt: int) -> None:
        self.phase = Phase.READY
        self.link.send(Ready(self.name, cell, attempt))

    def entered(self, generation: int) -> None:
        """A generation begins for this worker: all that was committed before is known."""
        self.phase, self.generation = Phase.JOINING, generation
        with self.lock:
            self.unsaid.clear()

    def adopted(self, seconds: float) -> None:
        """Of those who had state copied to or from them."""
        self.link.send(Adopted(self.name, self.generation, seconds))

    def committed(self, commit: Commit, step: Step) -> None:
        """Say at once that a step is committed, or keep the word."""
        speaks = step.member.rank == 0
        first = speaks and step.standing.in_first_cell
        message = Committed(
            self.name,
            self.generation,
            commit.steps,
            commit.seconds,
            len(step.standing.cells),
            commit.metrics,
            tuple(commit.stats),
            commit.norm_sq,
            tuple(commit.takers) if self.audited else (),
            step.standing.crew,
            tuple(cell for cell in step.standing.cells for _ in range(step.member.size)) if self.audited else (),
            tuple(commit.pace) if first else (),
            commit.rolled_back,
            tuple(commit.checksums) if first else (),
        )
        with self.lock:
            if speaks or self.calls.stopped >= self.generation:
                self.link.send(message)
            else:
                self.unsaid.append(message)
        for note in step.shard.notes():
            self.noted(step.steps - 1, note)

    def noted(self, step: int, note: Mapping[str, Any]) -> None:
        """What the journal should know of a step: a line of the note's `kind`."""
        fields = {key: value for key, value in note.items() if key not in ("kind", "step")}
        self.link.send(Noted(self.name, self.generation, step, str(note["kind"]), fields))

    def evaluated(self, steps: int, metrics: Mapping[str, Number | None]) -> None:
        self.link.send(Evaluated(self.name, self.generation, steps, metrics))

    def finished(self) -> None:
        self.phase = Phase.FINISHED
        self.link.send(Finished(self.name, self.generation))

    def acked(self, generation: int, ack: Ack, known: int = -1) -> None:
        """Answer a stop. `known`: committed steps that the controller knows of."""
        self.phase = Phase.SPARE if ack.out else Phase.STOPPED
        self.settle(known)
        self.link.send(Acked(self.name, generation, ack))

    def broke(self, error: Exception) -> None:
        """Tell what the training code met, unless this process does not go on after it: then that is told as it ends
        (`main`), and the error is raised again."""
        if meaning(error) in ENDS:
            raise error
        self.failed("code", error)

    def failed(self, where: Where, error: BaseException, attempt: int = -1, damaged: Damage | None = None) -> None:
        """Tell what happened; the controller decides what follows."""
        self.phase = Phase.FAILED
        self.settle(-1)
        trace = "".join(traceback.format_exception(error)) if where == "code" else ""
        text = memory_figures(str(error)) if where == "memory" else str(error)
        message = f"{type(error).__name__}: {'; '.join(line.strip() for line in text.splitlines())}"
        self.link.send(Failed(self.name, self.generation, where, message, attempt, trace, damaged))

    def settle(self, known: int) -> None:
        """Say the commits that were kept and that the controller may not know of. Any thread."""
        with self.lock:
            for message in self.unsaid:
                if message.steps > known:
                    self.link.send(message)
            self.unsaid.clear()

    def held(self, rank: int, steps: int, era: int) -> None:
        """A copy has arrived whole. Any thread."""
        self.link.send(CopyHeld(self.name, rank, steps, era))

    def saved(self, steps: int, address: str, seconds: float, size: int) -> None:
        """A checkpoint is whole. Any thread."""
        self.link.send(Checkpointed(steps, self.name, address, seconds, size))

    def not_saved(self, steps: int, reason: str, remedy: str) -> None:
        """A checkpoint never will be. Any thread."""
        self.link.send(NotSaved(steps, reason, self.name, remedy))
