"""Which transport carries the tensors of which kind of device."""

from __future__ import annotations

from collections.abc import Callable

from shoal.timeouts import Timeouts
from shoal.worker.nccl import on_cuda
from shoal.worker.transport import GlooTransport, Transport

__all__ = ["TRANSPORTS", "choose"]


def on_cpu(timeouts: Timeouts) -> Transport:
    return GlooTransport(timeouts.collective)


TRANSPORTS: dict[str, Callable[[Timeouts], Transport]] = {"cpu": on_cpu, "cuda": on_cuda}
"""By kind of device (`Workload.runs_on`). A test puts another in its place."""


def choose(device: str, timeouts: Timeouts) -> Transport:
    """What carries tensors of this kind of device."""
    return TRANSPORTS[device](timeouts)
