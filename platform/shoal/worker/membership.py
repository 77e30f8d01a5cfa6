"""One worker's part in one generation: to join it, to commit steps until it ends, and what is due between two steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from shoal.names import node_of
from shoal.peers import Cells
from shoal.protocol import orders
from shoal.protocol.said import Ack, Phase
from shoal.saving.chances import AHEAD
from shoal.saving.deadline import Notice
from shoal.saving.leaving import Leaves
from shoal.worker.ownership import end_if_lost
from shoal.worker.step import CellBroken, Commit, Step
from shoal.worker.transfer import copy_state
from shoal.worker.voice import Voice
from shoal.worker.world import RetainedState, World
from shoal_core.devices import device_name

__all__ = ["Membership", "ack_of", "ack_without"]

LAST_PAUSES = (0.0, 1.0, 4.0)
"""Seconds after which the save of the last state is tried again."""


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
        self.pace, self.shape = world.pace, world.order.shape
        self.mesh = None if world.order.mesh is None else asdict(world.order.mesh)
        self.leaves: Leaves | None = None
        """Of a cell some of whose nodes are about to go, and that nobody can take over from."""
        self.step.saving = self._saving

    def join(self, order: orders.Generation) -> bool:
        """Build the groups of a generation, and copy state to or from a cell that is being healed. False if no step
        follows.

        Raises:
            Stopped: the generation ended first. CellBroken: a peer inside the cell is gone.
            RuntimeError: a collective between cells failed.
        """
        step, groups, heard = self.step, self.kit.groups, time.monotonic()
        step.inject("meet")
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
        self.saver.stand(step.standing.formed)
        self.saver.chances.entered()
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
        self._introduce()
        while True:
            self._boundary()
            if self.step.steps >= self.kit.job.steps:
                self._tell_memory(last=True)
                self.voice.finished()
                return
            self.voice.phase = Phase.INSIDE
            with self.kit.profiler.around(self.step.steps):
                commit = self.step.run()
            self._committed(commit)
            self.saver.chances.heard(self.step.steps - 1, wanted=commit.save, busy=commit.saving)
            if commit.pause:
                self.step.inject("paused")
                if self.kit.job.elastic is not None:
                    self.kit.courier.open(self.step, self.shape)  # cells of another shape may be filled from it
                self.voice.acked(self.voice.generation, ack_of(self.step))
                return

    def commit_late(self, order: orders.CommitLate) -> None:
        """Commit the pending step because somebody has: its sums are complete here too."""
        self._committed(self.step.commit(list(order.stats), order.norm_sq, list(order.takers)))

    def _committed(self, commit: Commit) -> None:
        """A step is committed here: nobody else may rely on it before the controller is told."""
        self.voice.committed(commit, self.step)
        self._tell_memory()
        if self.kit.job.elastic is not None:
            self.kit.courier.put_away()
        self.pace.stepped(commit.seconds)
        if self.step.rhythm.due(self.step.steps) and commit.rolled_back is None:
            self._copy()

    def _introduce(self) -> None:
        """Tell what the first cell computes on, and in which shape, for those who predict what that takes."""
        step, meter = self.step, self.kit.meter
        first = step.member.rank == 0 and step.standing.in_first_cell
        if meter is None or not first or not meter.first_in(self.shape):
            return
        about = {"device": device_name(self.kit.workload.runs_on), "memory": meter.of_all}
        shape = {"shape": self.shape, "mesh": self.mesh, "cells": len(step.standing.cells), "workers": step.member.size}
        self.voice.noted(step.steps, {"kind": "device", **about, **shape})

    def _tell_memory(self, *, last: bool = False) -> None:
        """Tell how much memory this worker took at most, if there is news of it."""
        meter = self.kit.meter
        if meter is not None and (peak := meter.news(last=last)) is not None:
            what = {"bytes": peak, "measured": meter.measured, "shape": self.shape}
            self.voice.noted(self.step.steps - 1, {"kind": "memory", **what})

    def _copy(self) -> None:
        """Copy the state into memory, and find out what that costs."""
        start = time.monotonic()
        self.kit.courier.keep(self.step, self.shape)
        if self.step.rhythm.times(self.step.steps):
            self.step.snapshot.arrived()
        self.step.rhythm.copied(self.step.steps, time.monotonic() - start)

    def _saving(self) -> tuple[bool, bool]:
        """What this worker says of checkpoints in the vote (`Chances.word`). When one is due the first cell knows."""
        steps, busy = self.step.steps, self.saver.busy()
        if not busy:
            self.pace.heard(self.saver.heard)
        due = self.step.standing.in_first_cell and self.pace.due(steps + AHEAD)
        return self.saver.chances.word(steps, due=due, busy=busy, failed=self.saver.problem is not None)

    def _boundary(self) -> None:
        """What happens between two steps: evaluation, at the same steps whatever died meanwhile, and checkpoints."""
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
        saves = self.leaves is None or step.standing.in_first_cell  # who is to outlive the first was healed from it
        if step.steps and last:
            if saves:
                self._save_last()
        elif self.saver.chances.now(step.steps):
            if saves:
                self._save()
            else:
                self.saver.chances.began(step.steps)

    def _save_last(self) -> None:
        """Have the state of the last step saved, and wait for it: no other save follows."""
        tries = 0
        if self.step.saved < self.step.steps:
            self._save(must=True)
            tries = 1
        self._written()
        for pause in LAST_PAUSES:
            if self.saver.problem is None:
                break
            self.kit.groups.pause(pause)
            self._save(tries, must=True)
            self._written()
            tries += 1

    def _written(self) -> None:
        """Wait for the checkpoint that is being written."""
        self.kit.groups.until(lambda: not self.saver.busy())

    def _save(self, tries: int = 0, *, must: bool = False) -> None:
        """Begin a checkpoint of the committed state, after the one before it: with the other cells, unless nodes of
        this one go. tries: how often this state was begun in this generation; `must`: whether or not it fits into the
        time that is left. If another session has the run, this worker ends instead: its controller, who would have
        ended it, is gone."""
        step = self.step
        cells = None
        if self.leaves is None and len(step.standing.cells) > 1:
            name = f"{step.standing.draw}/{step.steps}/{tries}"
            cells = Cells(step.standing.formed, step.standing.place, name)
        end_if_lost(self.kit.job.place, self.kit.rundir, self.session())
        self.voice.phase = Phase.SAVING
        self.saver.join()
        try:
            samples, _ = self.kit.workload.samples(step.steps)
            metrics: dict[str, float] = {}
            for at, figures in (step.figured, step.measured):
                metrics |= figures if at == step.steps else {}
            about: dict[str, Any] = {"samples": samples, "tokens": self.kit.workload.tokens(samples)}
            finite = {name: figure for name, figure in metrics.items() if math.isfinite(figure)}
            about |= {"bpb": metrics.get("bpb"), "metrics": finite}
            state = step.state_dict()
            notice = None if self.leaves is None else self._notice(self.leaves, must=must)
            told = self.pace.told(None if notice is None else math.inf if notice.left is None else notice.left)
            with step.in_cell():
                about |= {"finite": step.finite}
                self.saver.save(step.steps, self.voice.generation, state, told, notice, cells, **about)
        except RuntimeError as error:
            raise CellBroken from error
        step.saved = step.steps
        self.pace.began(step.steps)
        step.inject("checkpoint")

    def _notice(self, leaves: Leaves, *, must: bool) -> Notice:
        """What this worker says before a save, while nodes of its cell go; `must`: as if nobody knew when."""
        left = None if must else leaves.left(time.monotonic())
        return Notice(leaves.going, left, self.kit.speed.bytes, self.kit.courier.speed)
