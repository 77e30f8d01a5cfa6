"""Walks a rank's order of a schedule: asks ahead, waits for what an action needs, computes it, sends on what it made.

Everything that travels has the shape of hidden states, (B, T, D): samples of a micro-batch, positions, width. Sends are
never waited for inside a step, and receives are posted some actions ahead, so that data travels while something else is
computed. A micro-batch that is not there (a schedule may want more of them than there are) is passed over: nothing is
computed or sent for it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist

from shoal_workloads.parallel.schedule import Action, Schedule, Step, actions_of

__all__ = ["Executor", "Record", "Stages"]

AHEAD = 2  # steps whose input is asked for while another is computed


class Stages(Protocol):
    """What is computed: the stages of one rank."""

    def forward(self, stage: int, micro_batch: int, x: torch.Tensor | None) -> torch.Tensor | None:
        """Hidden states before the stage (none before the first) -> those after it (none after the last)."""

    def backward(self, stage: int, micro_batch: int, grad: torch.Tensor | None, *, wait: bool) -> torch.Tensor | None:
        """The gradient of what `forward` returned (none at the last stage) -> that of its input (none at the first).
        `wait`: leave gradients of weights for `weights`."""

    def weights(self, stage: int, micro_batch: int) -> None:
        """The gradients that `backward` left."""


class Record(NamedTuple):
    """A step of the order, and when it was worked at: seconds of `time.monotonic`, waiting for input not counted."""

    step: Step
    start: float
    end: float


class _Channel:
    """Tensors between the stages of a chain, by what they are: ("F" or "B", the stage that made it, micro-batch)."""

    def __init__(self, schedule: Schedule, chain: Sequence[int], place: int, like: torch.Tensor) -> None:
        self._schedule, self._chain, self._place, self._like = schedule, chain, place, like
        self._here: dict[tuple[str, int, int], torch.Tensor] = {}
        self._coming: dict[tuple[str, int, int], tuple[torch.Tensor, dist.Work]] = {}
        self._going: list[tuple[torch.Tensor, dist.Work]] = []

    def _tag(self, kind: str, stage: int, micro_batch: int) -> int:
        return (micro_batch * self._schedule.stages + stage) * 2 + (kind == "B")

    def ask(self, kind: str, stage: int, micro_batch: int) -> None:
        """Begin to receive what `stage` makes, if another rank does."""
        key = (kind, stage, micro_batch)
        source = self._schedule.rank_of(stage, micro_batch)
        if source != self._place and key not in self._coming:
            buffer = torch.empty_like(self._like)
            work = dist.irecv(buffer, self._chain[source], tag=self._tag(*key))
            assert work is not None
            self._coming[key] = (buffer, work)

    def get(self, kind: str, stage: int, micro_batch: int) -> torch.Tensor:
        """Wait for it."""
        key = (kind, stage, micro_batch)
        if key in self._here:
            return self._here.pop(key)
        self.ask(*key)
        buffer, work = self._coming.pop(key)
        work.wait()
        return buffer

    def put(self, kind: str, stage: int, micro_batch: int, value: torch.Tensor, to: int) -> None:
        """Hand on what `stage` made to stage `to`."""
        target = self._schedule.rank_of(to, micro_batch)
        if target == self._place:
            self._here[kind, stage, micro_batch] = value
            return
        value = value.contiguous()
        work = dist.isend(value, self._chain[target], tag=self._tag(kind, stage, micro_batch))
        assert work is not None
        self._going = [(tensor, other) for tensor, other in self._going if not other.is_completed()]
        self._going.append((value, work))

    def finish(self) -> None:
        """Wait until everything is sent."""
        for _, work in self._going:
            work.wait()
        self._going = []


class Executor:
    """`chain`: the ranks of the workers that take a micro-batch through all stages, of which this one is at `place`.
    `like`: a tensor of the shape and type of hidden states. `overlap`: run the backward of a pair in a thread beside
    the forward, so that the one computes while the other waits for its experts' all-to-all. `records`: of the last
    run, if `measure`."""

    def __init__(
        self,
        schedule: Schedule,
        chain: Sequence[int],
        place: int,
        stages: Stages,
        like: torch.Tensor,
        *,
        overlap: bool = False,
        measure: bool = False,
    ) -> None:
        self._schedule, self._place, self._stages = schedule, place, stages
        self._channel = _Channel(schedule, chain, place, like)
        self._overlap, self._measure = overlap, measure
        self.records: list[Record] = []

    def run(self, present: Collection[int]) -> None:
        """Do this rank's order for the micro-batches that are `present`. Collective over the cell.

        Raises:
            RuntimeError: a peer is gone.
        """
        self.records = []
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, "backward", torch.set_num_threads, (threads,)) as beside:
            self._walk(present, beside if self._overlap else None)
        self._channel.finish()

    def _walk(self, present: Collection[int], beside: ThreadPoolExecutor | None) -> None:
        order = [step for step in self._schedule.orders[self._place] if self._live(step, present)]
        asked = 0
        for place, step in enumerate(order):
            # Ask ahead for what other ranks make.
            while asked < min(len(order), place + 1 + AHEAD):
                for action in self._live(order[asked], present):
                    for need in self._needs(action):
                        self._channel.ask(*need)
                asked += 1
            # Wait for what this step needs.
            actions = self._live(step, present)
            inputs = [self._input(action) for action in actions]
            # Compute, of a pair both at once, and send on.
            start = time.monotonic()
            if len(actions) == 2 and beside is not None:
                backward = beside.submit(self._compute, actions[1], inputs[1])
                self._send(actions[0], self._compute(actions[0], inputs[0]))
                self._send(actions[1], backward.result())
            else:
                for action, value in zip(actions, inputs, strict=True):
                    self._send(action, self._compute(action, value))
            if self._measure:
                self.records.append(Record(step, start, time.monotonic()))

    @staticmethod
    def _live(step: Step, present: Collection[int]) -> list[Action]:
        return [action for action in actions_of(step) if action.micro_batch in present]

    def _needs(self, action: Action) -> Iterator[tuple[str, int, int]]:
        """What comes from another stage."""
        if action.kind == "F" and action.stage > 0:
            yield "F", action.stage - 1, action.micro_batch
        if action.kind in "BI" and action.stage < self._schedule.stages - 1:
            yield "B", action.stage + 1, action.micro_batch

    def _input(self, action: Action) -> torch.Tensor | None:
        found = [self._channel.get(*need) for need in self._needs(action)]
        return found[0] if found else None

    def _compute(self, action: Action, value: torch.Tensor | None) -> torch.Tensor | None:
        """What the next stage needs of it."""
        stage, micro_batch = action.stage, action.micro_batch
        if action.kind == "F":
            return self._stages.forward(stage, micro_batch, value)
        if action.kind != "W":
            return self._stages.backward(stage, micro_batch, value, wait=action.kind == "I")
        self._stages.weights(stage, micro_batch)
        return None

    def _send(self, action: Action, made: torch.Tensor | None) -> None:
        if made is not None:
            forward = action.kind == "F"
            to = action.stage + 1 if forward else action.stage - 1
            self._channel.put("F" if forward else "B", action.stage, action.micro_batch, made, to)
