"""What carries a run's tensors where this backend stands for NCCL: the platform's own code, on groups of this one."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from shoal.testing.fakenccl.group import NAME, FakeNccl, register
from shoal.timeouts import Timeouts
from shoal.worker.carriers import TRANSPORTS
from shoal.worker.lastresort import LastResort
from shoal.worker.nccl import NcclTransport

__all__ = ["install", "transport"]


def install() -> None:
    """Workers of this process take it for what carries a CPU's tensors."""
    register()
    TRANSPORTS["cpu"] = transport


def transport(timeouts: Timeouts, last: LastResort | None = None) -> NcclTransport:
    """As `worker.nccl.on_cuda` makes NCCL's."""

    def begin(store: dist.Store, rank: int, size: int) -> FakeNccl:
        return FakeNccl(store, rank, size, timedelta(seconds=timeouts.collective))

    last = last or LastResort(timeouts.abort)
    return NcclTransport(NAME, FakeNccl, begin, torch.device("cpu"), last, bound=False)
