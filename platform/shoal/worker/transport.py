"""What the platform asks of communicators: to be made, to add up, to copy, to be polled, left and freed.

What runs between cells can be walked away from, on whatever carries it. Votes, checkpoints and control are gloo's
(`GlooTransport`); the sums over cells and copied states go where the tensors are (`carriers`).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Communicator", "GlooTransport", "Pending", "Transport", "from_first"]


class Pending(ABC):
    """Something that was begun; it holds its buffers."""

    @abstractmethod
    def done(self) -> bool:
        """Whether it has come to an end. Raises RuntimeError: it never will."""

    @abstractmethod
    def finish(self) -> None:
        """Once done. Raises RuntimeError: what it wrote is not what was asked for."""


class Communicator(ABC):
    """One group of workers outside their cells' worlds."""

    def ready(self) -> bool:
        """Whether something can be begun. Raises RuntimeError: it never can."""
        return True

    @abstractmethod
    def sum(self, tensor: torch.Tensor) -> Pending:
        """Begin to add `tensor` up over the group, in place."""

    @abstractmethod
    def copy(self, tensor: torch.Tensor) -> Pending:
        """Begin to copy `tensor` from rank 0 to the others, in place."""

    @abstractmethod
    def check(self) -> None:
        """Raises RuntimeError: something that ran in it is not to be trusted."""

    @abstractmethod
    def abandon(self) -> None:
        """Nobody waits any more for what is under way: end it, where that can be done. Any thread; does not block."""

    @abstractmethod
    def free(self) -> None:
        """Give back what it holds. May take a while; nothing of it is used afterwards."""


class Transport(ABC):
    """What carries a run's tensors. `backend`: of a cell's default world, as torch is told; `device_id`: likewise.

    `keyed`: members of a group find each other when they first speak, by keys that all groups exchange at once."""

    backend = "gloo"
    device_id: torch.device | None = None
    keyed = True
    leaves_threads = True
    """A training thread that does not come out of a cut cell may be left behind: nothing but it is stuck."""

    @abstractmethod
    def make(self, store: dist.Store, rank: int, size: int) -> Communicator:
        """One that may not stand yet."""

    @abstractmethod
    def cut(self) -> None:
        """End all that is under way in the cell's world. Any thread; does not block. Where that may fail, this process
        ends unless `freed` or `close` is called in time."""

    @abstractmethod
    def freed(self) -> None:
        """The training thread has come back from it."""

    @abstractmethod
    def check(self) -> None:
        """Raises DistBackendError: something that ran in the cell's world is not to be trusted."""

    @abstractmethod
    def close(self) -> None:
        """The cell's world, if there is one, is about to be destroyed; the next one is not cut."""


class GlooPending(Pending):
    def __init__(self, work: dist.Work, buffer: torch.Tensor) -> None:
        self._work, self._buffer = work, buffer

    def done(self) -> bool:
        return self._work.is_completed()

    def finish(self) -> None:
        self._work.wait()  # completed is also what failed is: this raises


class GlooCommunicator(Communicator):
    """A stuck gloo collective cannot be ended: it is left, and freed when nobody waits for it any more."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def sum(self, tensor: torch.Tensor) -> Pending:
        return GlooPending(self._group.allreduce([tensor]), tensor)

    def copy(self, tensor: torch.Tensor) -> Pending:
        return GlooPending(self._group.broadcast([tensor], from_first()), tensor)

    def check(self) -> None:
        """gloo's own errors are raised where they are met."""

    def abandon(self) -> None:
        """It goes on until a peer's connection closes."""

    def free(self) -> None:
        self._group.abort()


class GlooTransport(Transport):
    """`timeout`: seconds, of every group; a safety net, not what ends a wait."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def make(self, store: dist.Store, rank: int, size: int) -> Communicator:
        return GlooCommunicator(dist.ProcessGroupGloo(store, rank, size, self.options()))

    def cut(self) -> None:
        """Its connections are cut instead (`sockets`)."""

    def freed(self) -> None:
        pass

    def check(self) -> None:
        """gloo's own errors are raised where they are met."""

    def close(self) -> None:
        pass

    def options(self) -> Any:
        """Of a group: its members connect when they first speak to each other. In a large run a worker has to do with
        few of the others, and could not hold a connection to each."""
        gloo: Any = dist.ProcessGroupGloo  # of which the stubs do not know all
        options = gloo._Options()
        # torch looks at this variable only where it makes the devices itself; without it gloo takes this host's name,
        # which may stand for loopback, where no other node would find it.
        names = os.environ.get("GLOO_SOCKET_IFNAME", "")
        options._devices = [
            gloo.create_device(interface=name, lazy_init=True) if name else gloo.create_default_device(lazy_init=True)
            for name in names.split(",")
        ]
        options._timeout = timedelta(seconds=self._timeout)
        return options


def from_first() -> Any:
    """Options of a broadcast from rank 0."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    return options
