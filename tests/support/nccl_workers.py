"""Workers whose tensors travel on the backend that imitates NCCL, without a controller: a rank in each thread."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from shoal.testing import fakenccl
from shoal.timeouts import Timeouts
from shoal.worker.groups import Groups
from shoal.worker.lastresort import LastResort
from shoal.worker.transport import Communicator, GlooTransport

__all__ = ["LONG", "PATIENCE", "Worker", "settle", "threads_since", "together"]

PATIENCE, LONG = 60.0, 60.0
names = map(str, itertools.count())


class Worker:
    """One rank: its transport, its groups and the flag by which it walks away."""

    def __init__(self, rank: int, size: int, store: dist.Store) -> None:
        self.rank, self.size, self.store, self.off = rank, size, store, threading.Event()
        self.ended: list[str] = []
        self._made: list[Communicator] = []
        self._voting: list[Communicator] = []
        timeouts = Timeouts(PATIENCE)
        self.transport = fakenccl.transport(timeouts, LastResort(timeouts.abort, self.ended.append))
        self.watch(self.off)

    def watch(self, off: threading.Event) -> None:
        """Walk away by this flag from now on."""
        rendezvous: Any = None
        self.groups = Groups(PATIENCE, PATIENCE, off.is_set, rendezvous, self.transport)

    def group(self, key: str = "cross") -> Communicator:
        self._made.append(self.transport.make(dist.PrefixStore(key, self.store), self.rank, self.size))
        return self._made[-1]

    def close(self) -> None:
        """As when its process ends. A gloo group is dropped in a thread of its own: it keeps whoever drops it until its
        last sum has ended, and that of a peer that waits for this rank ends with this rank's own group."""
        for group in self._made:
            group.abandon()
        for group in self._voting:
            threading.Thread(target=vars(group).clear, daemon=True).start()

    def gloo(self) -> Communicator:
        """For votes. Connected: one that speaks to a peer for the first time when that is gone tries for five times its
        timeout."""
        group = GlooTransport(PATIENCE).make(dist.PrefixStore("all", self.store), self.rank, self.size)
        self.groups.sum(group, torch.ones(1))
        self._voting.append(group)
        return group


def together(do: Callable[[Worker], Any], size: int = 2) -> list[Any]:
    """What `do` comes to on each rank, or what it raises."""
    store, found = dist.PrefixStore(next(names), dist.HashStore()), [None] * size

    workers = [Worker(index, size, store) for index in range(size)]

    def rank(index: int) -> None:
        try:
            found[index] = do(workers[index])
        except BaseException as error:
            found[index] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=rank, args=(index,), daemon=True) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LONG)
    for worker in workers:
        worker.close()
    return found


OURS = ("fakenccl", "nccl-abort", "nccl-begin", "nccl-cut", "retire", "last-resort")


def settle(others: set[threading.Thread]) -> None:
    """Wait for what was begun since then to end."""
    end = time.monotonic() + LONG
    while threads_since(others) and time.monotonic() < end:
        time.sleep(0.002)


def threads_since(others: set[threading.Thread]) -> int:
    return sum(thread.name in OURS for thread in set(threading.enumerate()) - others)
