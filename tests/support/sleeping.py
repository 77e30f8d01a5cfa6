"""Pipeline runs whose stages sleep for the time of an action: real processes and messages, hardly any computation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from shoal.testing import World
from shoal_workloads.parallel.pipeline.executor import Executor
from shoal_workloads.parallel.pipeline.wires import Wires, make_channels
from shoal_workloads.parallel.schedule import Schedule, Span, Timeline, build, simulate, timeline

__all__ = ["Measured", "compare", "measure"]


@dataclass(frozen=True)
class Measured:
    """A run, and the simulation of the same schedule with the times that its actions took, and no time for messages."""

    run: Timeline
    simulated: Timeline


class _Sleepers:
    """Stages, each action of which sleeps: F, I and W one `unit`, a full backward two."""

    def __init__(self, stages: int, unit: float) -> None:
        self._last, self._unit = stages - 1, unit

    def forward(self, stage: int, micro_batch: int, x: torch.Tensor | None) -> torch.Tensor | None:
        time.sleep(self._unit)
        return None if stage == self._last else torch.full((8, 64), float(micro_batch))

    def backward(self, stage: int, micro_batch: int, grad: torch.Tensor | None, *, wait: bool) -> torch.Tensor | None:
        time.sleep(self._unit * (1 if wait else 2))
        return None if stage == 0 else torch.full((8, 64), float(micro_batch))

    def weights(self, stage: int, micro_batch: int) -> None:
        time.sleep(self._unit)


def _rank(name: str, pp: int, micro_batches: int, unit: float) -> list[Span]:
    """One rank's run, after one that warms up."""
    schedule = build(name, pp, micro_batches)
    like, place = torch.empty(8, 64), dist.get_rank()
    wires = Wires(schedule, range(pp), make_channels(schedule, "cpu"))
    Executor(schedule, place, _Sleepers(schedule.stages, 0.0), like, wires).run(range(micro_batches))
    executor = Executor(schedule, place, _Sleepers(schedule.stages, unit), like, wires, measure=True)
    dist.barrier()
    executor.run(range(micro_batches))
    return [Span(*record) for record in executor.records]


def compare(schedule: Schedule, spans: Sequence[Sequence[Span]]) -> Measured:
    """Simulate `schedule` with the time that every single action took."""
    took = {span.step: span.end - span.start for rank in spans for span in rank}
    return Measured(timeline(spans), simulate(schedule, took.__getitem__))


def measure(ranks: World, name: str, micro_batches: int, unit: float) -> Measured:
    """Run a schedule on all `ranks`; `unit`: seconds of a forward."""
    spans: list[list[Span]] = ranks.run(_rank, name, ranks.size, micro_batches, unit)
    return compare(build(name, ranks.size, micro_batches), spans)
