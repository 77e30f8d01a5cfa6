"""Walks a rank's order of a schedule: asks ahead, waits for what an action needs, computes it, sends on what it made.

Everything that travels has the shape of hidden states, (B, T, D): samples of a micro-batch, positions, width. Sends are
never waited for inside a step, and receives are posted some actions ahead, so that data travels while something else is
computed; in which order, `schedule.turns` says. A micro-batch that is not there (a schedule may want more of them than
there are) is passed over: nothing is computed or sent for it.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist

from shoal_workloads.parallel.pipeline.streams import Streams
from shoal_workloads.parallel.pipeline.wires import Wires
from shoal_workloads.parallel.schedule import Action, Schedule, Step, Transfer, Turn, restrict, turns

__all__ = ["Executor", "Record", "Stages"]


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
    """Tensors between the stages of a chain, wherever they are made. `like`: what each of them is like."""

    def __init__(self, wires: Wires, like: torch.Tensor) -> None:
        self._wires, self._like = wires, like
        self._here: dict[Transfer, torch.Tensor] = {}
        self._coming: dict[Transfer, tuple[torch.Tensor, dist.Work]] = {}
        self._going: list[tuple[torch.Tensor, dist.Work]] = []

    def ask(self, transfer: Transfer) -> None:
        """Begin to receive."""
        buffer = torch.empty_like(self._like)
        self._coming[transfer] = (buffer, self._wires.receive(transfer, buffer))

    def get(self, transfer: Transfer) -> torch.Tensor:
        """Wait for it."""
        if transfer.local:
            return self._here.pop(transfer)
        buffer, work = self._coming.pop(transfer)
        work.wait()
        return buffer

    def put(self, transfer: Transfer, value: torch.Tensor) -> None:
        """Hand on."""
        if transfer.local:
            self._here[transfer] = value
            return
        value = value.contiguous()
        work = self._wires.send(transfer, value)
        self._going = [(tensor, other) for tensor, other in self._going if not other.is_completed()]
        self._going.append((value, work))

    def finish(self) -> None:
        """Wait until everything is sent."""
        for _, work in self._going:
            work.wait()
        self._going = []


class Executor:
    """Of the rank at `place` in a chain. `like`: a tensor of the shape and type of hidden states. `overlap`: run the
    backward of a pair in a thread beside the forward, so that the one computes while the other waits for its experts'
    all-to-all. `streams`: where; see there. `records`: of the last run, if `measure`."""

    def __init__(
        self,
        schedule: Schedule,
        place: int,
        stages: Stages,
        like: torch.Tensor,
        wires: Wires,
        *,
        overlap: bool = False,
        streams: Streams | None = None,
        measure: bool = False,
    ) -> None:
        self._schedule, self._place, self._stages = schedule, place, stages
        self._channel, self._streams = _Channel(wires, like), streams or Streams()
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
            for turn in turns(restrict(self._schedule, present), self._place):
                self._take(turn, beside if self._overlap else None)
        self._channel.finish()

    def _take(self, turn: Turn, beside: ThreadPoolExecutor | None) -> None:
        # Ask ahead for what other ranks make, and wait for what this step needs.
        for transfer in turn.ask:
            self._channel.ask(transfer)
        inputs = [None if need is None else self._channel.get(need) for need in turn.needs]
        # Compute, of a pair both at once, and send on.
        start = self._clock()
        for action, value in zip(turn.actions, inputs, strict=True):
            self._streams.fork(action.stage, value)
        if len(turn.actions) == 2 and beside is not None:
            forward, backward = turn.actions
            later = beside.submit(self._compute, backward, inputs[1])
            self._send(forward, turn.makes[0], self._compute(forward, inputs[0]))
            self._send(backward, turn.makes[1], later.result())
        else:
            for action, value, makes in zip(turn.actions, inputs, turn.makes, strict=True):
                self._send(action, makes, self._compute(action, value))
        for action in turn.actions:
            self._streams.join(action.stage)
        if self._measure:
            self.records.append(Record(turn.step, start, self._clock()))

    def _clock(self) -> float:
        """A step that is measured waits for the device where it begins and ends: until then it has computed nothing."""
        if self._measure:
            self._streams.settle()
        return time.monotonic()

    def _compute(self, action: Action, value: torch.Tensor | None) -> torch.Tensor | None:
        """What the next stage needs of it."""
        stage, micro_batch = action.stage, action.micro_batch
        with self._streams.on(stage):
            if action.kind == "F":
                return self._stages.forward(stage, micro_batch, value)
            if action.kind != "W":
                return self._stages.backward(stage, micro_batch, value, wait=action.kind == "I")
            self._stages.weights(stage, micro_batch)
            return None

    def _send(self, action: Action, transfer: Transfer | None, made: torch.Tensor | None) -> None:
        if transfer is not None:
            assert made is not None, f"{action} made nothing for the next stage"
            with self._streams.on(action.stage):
                self._channel.put(transfer, made)
