"""One training step as a transaction: it commits everywhere or nowhere.

    inside the cell    forward and backward over this cell's micro-batches; gradient sums stay here
    across cells       a copy of the sums is added over the cells (matching workers only)
    vote               one all-reduce over every worker: who took which sample, losses, gradient norm
    commit             optimizer step, no communication

Whoever leaves the vote knows that every worker has its total, since the vote needs a word from each. So a worker that
leaves it commits, and a worker that was stopped in it can still commit later, when the controller says that somebody
has. The vote also proves that each sample of the step was taken exactly once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from shoal import batching
from shoal.config import Job
from shoal.protocol import orders
from shoal.protocol.said import Phase
from shoal.saving.rhythm import Rhythm
from shoal.worker.ballot import Ballot, Count
from shoal.worker.device import figures, stopwatch
from shoal.worker.exact import Fixed
from shoal.worker.faults import Fault, meaning
from shoal.worker.groups import Groups, Stopped
from shoal.worker.inject import Injector
from shoal.worker.memory import Meter
from shoal.worker.snapshot import Snapshot, checksum
from shoal.worker.standing import Member, Standing
from shoal.worker.sums import Sums, largest
from shoal.worker.transport import Transport
from shoal_core.lane import lane_of
from shoal_core.workload import ReplicaShard, Workload

__all__ = ["CellBroken", "Commit", "Step", "world_broke"]


class CellBroken(Exception):
    """A collective inside the cell failed: the cell's world is unusable."""


@dataclass(frozen=True)
class Commit:
    """What a committed step did. `steps`: committed ones now; `stats`, `norm_sq`, `takers`: what a laggard needs;
    `rolled_back`: steps of the snapshot that was gone back to; `pause`: all leave the generation now; of every worker,
    unless committed late: `checksums` of its state, if compared, and `pace`, seconds a micro-batch. `save`, `saving`:
    see `ballot.Count`."""

    steps: int
    seconds: float
    metrics: dict[str, float]
    stats: list[float]
    norm_sq: float
    takers: list[int]
    rolled_back: int | None
    pause: bool = False
    checksums: Sequence[float] = ()
    pace: Sequence[float] = ()
    save: bool = False
    saving: bool = False


def world_broke(error: RuntimeError) -> bool:
    """Whether an error comes from communication (a peer is gone), not from the training code."""
    return meaning(error) is Fault.PEER


def what_broke(error: Exception, transport: Transport) -> Exception | None:
    """What broke communication, if an error met in the cell comes from that: what computes with what an aborted
    collective left may raise anything."""
    fault = meaning(error)
    if fault is Fault.PEER and isinstance(error, RuntimeError):
        return error
    try:
        transport.check()
    except RuntimeError as cut:
        return None if fault is Fault.DEVICE else cut
    return None


class Step:
    """A worker's part in the steps of a cell, across generations.

    `steps`: committed steps of the state (-1: nothing healed yet). `todo`: micro-batches of the pending step; `sums`:
    those that are done. `evaluated`, `saved`: the last boundary evaluated and saved at; `measured`: the last evaluation
    here, after how many steps and what it found; `figured`: the same of the last step committed here. `watch`, `phase`:
    of the step that runs, what is done inside the cell, and whether it is.
    """

    def __init__(
        self, member: Member, workload: Workload, shard: ReplicaShard, groups: Groups, job: Job, injector: Injector
    ) -> None:
        self.member, self.workload, self.shard, self.groups = member, workload, shard, groups
        self.snapshots, self.injector, self.last = job.snapshots, injector, job.steps
        fixed = Fixed(largest(workload, job.steps)) if job.reduce == "exact" else None
        self.sums = Sums(workload, shard, member.rank, member.size, fixed)
        self.snapshot = Snapshot(lane_of(workload.runs_on))
        self.steps, self.evaluated, self.saved = -1, -1, -1
        self.measured: tuple[int, dict[str, float]] = -1, {}
        self.figured: tuple[int, dict[str, float]] = -1, {}
        self.todo: list[int] = []
        self.finite = True
        """Loss and gradient norm of the last step that was committed here were numbers."""
        self.torn = False
        """A step was begun to be applied and did not come to its end: the state is nobody's."""
        self.total: torch.Tensor | None = None
        self.standing = Standing(member)
        self.cross: Any = None
        self.all: Any = None
        self.since, self.watch = time.monotonic(), stopwatch(workload.runs_on)
        self.rhythm = Rhythm(job.snapshots.every)
        self.pausing: Callable[[], bool] = lambda: False
        """Whether to ask all to leave the generation after this step."""
        self.saving: Callable[[], tuple[bool, bool]] = lambda: (False, False)
        """Whether this worker wants a checkpoint, and whether one is under way here (`saving.chances`)."""
        self.inside: Callable[[], AbstractContextManager[None]] = nullcontext
        """See `TrainingThread`."""
        self.phase = Phase.INSIDE
        self.meter: Meter | None = None

    def enter(self, order: orders.Generation) -> list[Any]:
        """Build the groups of a generation: matching workers over cells, and everybody. Returns groups for the copies
        (source, target) that this worker's cell has a part in: the source's worker is rank 0."""
        self.abandon()
        self.snapshot.lane.precede()  # a state that is healed is written to
        self.evaluated = max(self.evaluated, order.evaluated)
        self.rhythm.began(order.steps)
        self.standing = now = Standing(self.member, order.cells, order.crew, order.attempts, order.draw)
        rank = self.member.rank
        everybody = ("all", now.index, now.count)
        copies = [(f"heal/{cell}/{rank}", int(self.member.cell == cell), 2) for _, cell in order.heals]
        matching = (f"cross/{rank}", now.place, len(now.cells))
        self.all, self.cross, *copying = self.groups.build("all", now.count, [everybody], [matching, *copies])
        self.inject("join")
        self.groups.retire()
        self.shard.generation_began()
        return copying

    def healed(self, steps: int) -> None:
        """The state was just copied from a peer."""
        self.shard.loaded(steps)
        self.steps = steps
        self.sums.forget()

    def tensors(self) -> list[torch.Tensor]:
        """All that a twin needs to become this replica."""
        fixed = self.sums.fixed
        return [*self.shard.tensors(), *([fixed.state] if fixed is not None else [])]

    def tensors_by_commit(self) -> Callable[[], list[torch.Tensor]]:
        """The same as they are now, for whoever asks before the next commit. Any thread."""
        own = [] if self.sums.fixed is None else [self.sums.fixed.state.clone()]  # an exponent changes before that
        return lambda: [*self.shard.tensors(), *own]

    def state_dict(self) -> dict[str, Any]:
        """The same for a checkpoint."""
        return {**self.shard.state_dict(), **self.sums.state()}

    def run(self) -> Commit:
        """Run the pending step to its commit.

        Raises:
            Stopped: the generation ended first. CellBroken: a peer inside the cell is gone.
            RuntimeError: a collective between cells failed.
        """
        while True:
            self.phase = Phase.INSIDE
            before = len(self.sums.done)
            self.watch.start()
            with self.in_cell():
                self.inject("accumulate")
                self.shard.expect(self.coming())
                total = self.sums.add_up(self.steps, self.todo)
            self.inject("accumulated", total)
            self.watch.stop()
            fresh = max(1, len(self.sums.done) - before)
            self.phase = Phase.ACROSS
            self.groups.sum(self.cross, total, lambda: self.inject("across"))
            self.total = total
            count = vote(self, total, self.watch.seconds() / fresh)
            norm_sq, peak = self.sums.judged(count)
            if self.sums.agreed(count, peak):
                break
            self.total, self.todo = None, self.share()
            self.sums.forget()
        self.inject("commit")
        figures = count.stats if self.sums.fixed is None else [*count.stats, peak]
        commit = self.commit(figures, norm_sq, count.takers)
        self.inject("committed", self.shard.tensors()[0], step=self.steps - 1)
        commit = replace(commit, pause=count.pause, checksums=count.checksums, pace=count.seconds)
        return replace(commit, save=count.save, saving=count.saving)

    def coming(self) -> Iterator[list[range]]:
        """What the shard will be given in this generation, from what is left of the pending step on."""
        steps, left = range(self.steps, self.last), [m for m in self.todo if m not in self.sums.done]
        size, each = self.member.size, self.workload.micro_batch
        return batching.coming(self.workload.samples, steps, left, self.standing.cells, self.member.cell, size, each)

    @contextmanager
    def in_cell(self) -> Iterator[None]:
        """Around the cell's collectives: tell a peer that is gone from an error of the training code.

        Raises:
            CellBroken: communication broke in the body. Stopped: this thread was left behind in it.
        """
        try:
            with self.inside():
                yield
            self.groups.transport.check()
        except Stopped:
            raise
        except Exception as error:
            if (cause := what_broke(error, self.groups.transport)) is not None:
                raise CellBroken from cause
            raise

    def inject(self, point: str, tensor: torch.Tensor | None = None, step: int | None = None) -> None:
        self.injector.hit(point, self.steps if step is None else step, self.member.cell, self.member.rank, tensor)

    def trust(self) -> None:
        """After the last wait for a device and before the word that others rely on: nothing that went into the sums may
        have been aborted, which no wait would have said.

        Raises:
            CellBroken: it was, inside the cell. RuntimeError: between cells.
        """
        with self.in_cell():
            pass
        if self.cross is not None:
            self.cross.check()

    def abandon(self) -> None:
        """This worker takes no part in its generation's sums any more. Its groups are not let go of here: that waits
        for what is under way in them, and thereby for others who have walked away too (`Groups.retire`)."""
        self.groups.leave(self.cross, self.all)
        self.cross = self.all = None

    def share(self) -> list[int]:
        """This cell's micro-batches of a fresh step."""
        first, last = self.workload.samples(self.steps)
        micro_batches = batching.count(first, last, self.member.size, self.workload.micro_batch)
        return batching.share(micro_batches, self.standing.cells)[self.member.cell]

    def commit(self, stats: list[float], norm_sq: float, takers: list[int]) -> Commit:
        """Apply the optimizer step to the complete total. `stats`: the workload's figures; in fixed point then the
        largest entry of the total."""
        assert self.total is not None, f"step {self.steps} cannot commit: its total is not complete"
        if (fixed := self.sums.fixed) is not None:
            fixed.nan = math.isnan(norm_sq)
        total = self.sums.value(self.total)
        self.snapshot.lane.precede()  # the state may still be on its way into a copy
        self.torn = True
        if fixed is not None:
            fixed.follow(stats[-1])
        metrics = self.shard.commit(total, stats if fixed is None else stats[:-1], norm_sq)
        self.torn = False
        self.finite = all(math.isfinite(metrics.get(name, 0.0)) for name in ("loss", "grad_norm"))
        seconds, self.since = time.monotonic() - self.since, time.monotonic()
        if self.meter is not None:
            self.meter.stepped()
        flops, tokens = self.workload.flops(self.steps), metrics.get("tokens", 0.0)
        metrics |= figures(self.workload.runs_on, tokens, flops, max(seconds, 1e-9), self.standing.count)
        self.steps += 1
        self.figured = self.steps, metrics
        self.rhythm.stepped(self.steps, seconds)
        back = self.mend(bool(metrics.get("roll_back")))
        self.sums.forget()
        self.total, self.todo = None, self.share()
        return Commit(self.steps, seconds, metrics, stats, norm_sq, takers, back)

    def mend(self, roll_back: bool) -> int | None:
        """Go back to the last state kept if the workload asks for it; returns its steps then."""
        if not roll_back:
            return None
        back = self.snapshot.restore(self.tensors())
        self.shard.loaded(self.steps)
        return back

    def evaluate(self) -> dict[str, float]:
        """Bits per byte and others on the held-out set, shared out over all workers.

        Raises: as `run`.
        """
        with self.in_cell():
            stats = torch.tensor(self.shard.evaluate(self.standing.index, self.standing.count), dtype=torch.float64)
        self.groups.sum(self.all, stats)
        return self.shard.eval_metrics(stats.tolist())


def vote(step: Step, total: torch.Tensor, pace: float) -> Count:
    """Give a worker's word, and hear what all words together say. `pace`: seconds a micro-batch.

    Raises: as `Step.run`.
    """
    first, last = step.workload.samples(step.steps)
    standing, size = step.standing, step.member.size
    micro_batches = batching.count(first, last, size, step.workload.micro_batch)
    width, exact = len(step.shard.stats()), step.sums.fixed is not None
    compare = bool(step.snapshots.compare) and step.steps % step.snapshots.compare == 0
    copies = step.rhythm.asks(step.steps)
    ballot = Ballot(last - first, micro_batches, size, len(standing.cells), width, exact, compare, copies)
    save, saving = step.saving()
    word = replace(
        step.sums.vote(standing.index, total),
        pause=step.pausing(),
        checksum=checksum(step.tensors()) if compare else 0.0,
        seconds=pace,
        copied=step.rhythm.part,
        save=save,
        saving=saving,
    )
    step.trust()
    words = ballot.fill(word, first_cell=standing.in_first_cell)
    step.groups.sum(step.all, words, lambda: step.inject("vote"))
    count = ballot.read(words, step.steps, first)
    step.rhythm.heard(count.copied)
    return count
