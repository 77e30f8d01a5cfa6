"""NCCL between cells and inside them: what cannot raise is polled, and what is stuck is aborted from another thread.

NCCL's `wait()` says nothing: a collective that was aborted completes, and leaves garbage. So whatever has completed
counts only if nothing was aborted and no error is flagged afterwards (`check`). A kernel that waits for the dead runs
until it is aborted; if even that does not come back within `Timeouts.abort`, the process ends (`lastresort`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from shoal.timeouts import Timeouts
from shoal.worker.lastresort import LastResort
from shoal.worker.transport import Communicator, Pending, Transport, from_first

__all__ = ["BUCKET", "NcclCommunicator", "NcclTransport", "on_cuda"]

BUCKET = 64 * 1024 * 1024
"""Bytes added up by one collective: enough for full speed, and few to wait for when a generation is left."""

Begin = Callable[[dist.Store, int, int], Any]
"""Makes torch's group of (store, rank, size); its members need not be there yet."""


class Side:
    """A stream beside the one that computes, so that what runs between cells holds no kernel up. On a CPU: nothing."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is issued in the body starts when all that was issued before it is done."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What is issued from now on comes after what was issued beside."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


class NcclCommunicator(Communicator):
    """Made in a thread, since its members may come late or die meanwhile. `begin`: makes torch's group; `device`: whose
    tensors it takes."""

    def __init__(self, begin: Callable[[], Any], device: torch.device, side: Side, last: LastResort) -> None:
        self._device, self._side, self._last = device, side, last
        self._group: Any = None
        self._first: Any = None
        """The first collective: when it is done, all members are there."""
        self._failure: BaseException | None = None
        self._abandoned = False
        self._lock = threading.Lock()
        self._under_way: list[NcclPending] = []
        """What may still be written to: kept until it is aborted."""
        threading.Thread(target=self._begin, args=(begin,), daemon=True, name="nccl-begin").start()

    def _begin(self, begin: Callable[[], Any]) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            group = begin()
            with self._lock:
                self._group, abandoned = group, self._abandoned
            if abandoned:
                self._abort()
                return
            group.eager_connect_single_device(self._device)
            with self._side.beside():
                self._first = group.allreduce([self._mark()])
        except RuntimeError as error:
            self._failure = error

    def _mark(self) -> torch.Tensor:
        return torch.ones(1, device=self._device)

    def ready(self) -> bool:
        self.check()
        return self._first is not None and self._first.is_completed()

    def sum(self, tensor: torch.Tensor) -> Pending:
        return self._issue(tensor, lambda part: self._group.allreduce([part]))

    def copy(self, tensor: torch.Tensor) -> Pending:
        return self._issue(tensor, lambda part: self._group.broadcast([part], from_first()))

    def _issue(self, tensor: torch.Tensor, start: Callable[[torch.Tensor], Any]) -> Pending:
        """A tensor of the CPU goes over the device, and back."""
        self.check()
        held = tensor if tensor.device == self._device else tensor.to(self._device)
        flat = held.view(-1)
        with self._side.beside():
            works = [start(part) for part in flat.split(max(1, BUCKET // held.element_size()))]
        pending = NcclPending(self, works, tensor, held, self._side)
        self._under_way.append(pending)
        return pending

    def finished(self, pending: NcclPending) -> None:
        self._under_way.remove(pending)

    def check(self) -> None:
        if self._failure is not None:
            raise dist.DistBackendError(f"NCCL error in: a group between cells: {self._failure}") from self._failure
        if self._abandoned:
            raise dist.DistBackendError("NCCL communicator was aborted: what ran in it is garbage")
        flagged(self._group)

    def abandon(self) -> None:
        with self._lock:
            if self._abandoned:
                return
            self._abandoned = True
            begun = self._group is not None
        if begun:
            threading.Thread(target=self._abort, daemon=True, name="nccl-abort").start()

    def _abort(self) -> None:
        with self._last.within("the abort of a group between cells"):
            self._group.abort()
            self._group = self._first = None
            self._under_way.clear()

    def free(self) -> None:
        self.abandon()


class NcclPending(Pending):
    """`held`: what is on the device, `tensor` itself or its copy there."""

    def __init__(
        self, owner: NcclCommunicator, works: list[Any], tensor: torch.Tensor, held: torch.Tensor, side: Side
    ) -> None:
        self._owner, self._works, self._tensor, self._held, self._side = owner, works, tensor, held, side

    def done(self) -> bool:
        self._owner.check()
        return all(work.is_completed() for work in self._works)

    def finish(self) -> None:
        self._owner.check()  # completed is also what was aborted is, and no wait says so
        with self._side.beside():
            for work in self._works:
                work.wait()
        self._side.join()
        if self._held is not self._tensor:
            self._tensor.copy_(self._held)
        self._owner.finished(self)


class NcclTransport(Transport):
    """`begin`: makes a group between cells; `kind`: torch's class of the groups that are NCCL's, or imitate it."""

    keyed = leaves_threads = False

    def __init__(
        self, backend: str, kind: Any, begin: Begin, device: torch.device, last: LastResort, *, bound: bool
    ) -> None:
        self.backend, self.device_id = backend, device if bound else None
        self._kind, self._start, self._device, self._last = kind, begin, device, last
        self._side = Side(device)
        self._cut = False
        self._freed: Callable[[], None] = lambda: None

    def make(self, store: dist.Store, rank: int, size: int) -> Communicator:
        return NcclCommunicator(lambda: self._start(store, rank, size), self._device, self._side, self._last)

    def cut(self) -> None:
        if self._cut:
            return
        self._cut = True  # first: whoever sees one of them complete must know it
        self._freed, groups = self._last.begin("what blocks in a cell that was cut"), self._groups()
        threading.Thread(target=self._abort, args=(groups,), daemon=True, name="nccl-cut").start()

    def check(self) -> None:
        if self._cut:
            raise dist.DistBackendError("NCCL communicator was aborted: the cell is cut")
        for group in self._groups():
            flagged(group)

    def freed(self) -> None:
        self._freed()

    def close(self) -> None:
        self._abort(self._groups())
        self.freed()
        self._cut = False

    def _abort(self, groups: list[Any]) -> None:
        with self._last.within("the abort of a cell's groups"):
            for group in groups:
                group.abort()

    def _groups(self) -> list[Any]:
        """The cell's world and all groups in it, as far as NCCL carries them."""
        found = []
        for group in list(dist.distributed_c10d._world.pg_map):
            try:
                backend = group._get_backend(self._device)
            except RuntimeError:
                continue  # it is for the CPU alone
            if isinstance(backend, self._kind):
                found.append(backend)
        return found


def flagged(group: Any) -> None:
    """Raises DistBackendError: an error is flagged in a group, of which nothing else tells."""
    if group is not None and (said := str(group.get_error()).rpartition(".")[2]) != "SUCCESS":
        raise dist.DistBackendError(f"NCCL error in: a collective ({said}): a peer is gone or cannot be reached")


def on_cuda(timeouts: Timeouts) -> NcclTransport:
    """NCCL, on the device that this thread uses."""
    device = torch.device("cuda", torch.cuda.current_device())
    nccl: Any = dist.ProcessGroupNCCL

    def begin(store: dist.Store, rank: int, size: int) -> Any:
        options = nccl.Options()
        options.config.blocking = 0
        options._timeout = timedelta(seconds=timeouts.collective)
        return nccl(store, rank, size, options)

    last = LastResort(timeouts.abort)
    return NcclTransport("cpu:gloo,cuda:nccl", nccl, begin, device, last, bound=True)
