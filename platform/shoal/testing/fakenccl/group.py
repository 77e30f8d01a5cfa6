"""The group, as torch knows it: what it is asked for, said to its communicators."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d
from torch.multiprocessing.reductions import StorageWeakRef

from shoal.testing.fakenccl.communicator import ABORTED, Communicator, Operation
from shoal.testing.fakenccl.wires import GlooWire, Lines, Pair, Wire

__all__ = ["NAME", "FakeNccl", "on_device", "one_queue", "refuse_cpu", "register"]

NAME = "fakenccl"

_marked: set[StorageWeakRef] = set()
_refusing = _one_queue = False
ANY = -1


def register() -> None:
    """Make the backend known to torch, once."""
    if NAME.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(NAME, _create, devices=["cpu"])


def refuse_cpu(refusing: bool) -> None:
    """Whether CPU tensors that `on_device` has not marked are refused from now on."""
    global _refusing
    _refusing = refusing
    if not refusing:
        _marked.clear()


def one_queue(chosen: bool) -> None:
    """Whether all sends and receives of a group stand in one queue from now on, whoever the peer: so it is where torch
    binds a world to its device (`device_id`). Else each pair of ranks has one."""
    global _one_queue
    _one_queue = chosen


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, and with it all views of its storage, counted as a device's from now on."""
    _marked.add(StorageWeakRef(tensor.untyped_storage()))
    return tensor


def _create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> FakeNccl:
    """For `init_process_group` and `new_group`: waits until the communicator stands."""
    group = FakeNccl(store, rank, size, timeout)
    group.eager_connect_single_device(None)
    group.wait_ready()
    return group


ProcessGroup: Any = dist.ProcessGroup  # whose stubs know overloads that torch does not ask a subclass for


class FakeNccl(ProcessGroup):
    """See the module. `timeout`: of what gloo does underneath; NCCL's own is Shoal's to keep."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._store, self._rank, self._size, self._timeout = store, rank, size, timeout
        self._communicator: Communicator | None = None
        self._queues: dict[int, Communicator] = {}
        self._aborted = False
        self._error = ""
        self._lock = threading.Lock()
        if rank == 0:
            store.set("name", secrets.token_hex(8))

    # ---- its life

    def eager_connect_single_device(self, device: torch.device | None) -> None:
        """Begin to create the communicator of all members."""
        self._all()

    def _is_initialized(self) -> bool:
        return self._communicator is not None and self._communicator.ready()

    def wait_ready(self) -> None:
        """Raises DistBackendError: a member did not come."""
        if not self._all().settle():
            raise dist.DistBackendError(f"NCCL error: a member did not come: {self._error or 'aborted'}")

    def get_error(self) -> Any:
        return c10d.ErrorType.REMOTE_ERROR if self._error else c10d.ErrorType.SUCCESS

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            found = [*([] if self._communicator is None else [self._communicator]), *self._queues.values()]
            self._queues.clear()
        for communicator in found:
            communicator.abort()

    def shutdown(self) -> None:
        self.abort()

    def _failed(self, why: str) -> None:
        self._error = self._error or why

    def _all(self) -> Communicator:
        with self._lock:
            if self._communicator is None:
                store = dist.PrefixStore("all", self._store)
                self._communicator = self._begin(partial(GlooWire, store, self._rank, self._size, self._timeout))
            return self._communicator

    def _queue(self, peer: int) -> Communicator:
        with self._lock:
            queue = ANY if _one_queue else peer
            if queue not in self._queues:
                self._queues[queue] = self._begin(partial(Lines, self._line_to))
            return self._queues[queue]

    def _begin(self, connect: Callable[[], Wire]) -> Communicator:
        if self._aborted:
            raise dist.DistBackendError(ABORTED)
        return Communicator(connect, self._failed)

    def _line_to(self, peer: int) -> Pair:
        low, high = sorted((self._rank, peer))
        name = self._store.get("name").decode()
        return Pair(f"{NAME}/{name}/{low}:{high}", low=self._rank == low)

    # ---- what torch asks of a group

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank

    def name(self) -> str:
        return NAME

    def getBackendName(self) -> str:
        return NAME

    def _get_backend(self, device: torch.device) -> FakeNccl:
        return self

    @property
    def group_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    def _run(
        self,
        start: Callable[[Any, list[torch.Tensor]], Any],
        read: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        peer: int | None = None,
    ) -> dist.Work:
        """`start`: begins it on what a wire leads to, with stand-ins for the `outputs`: what is aborted may still be
        written to underneath."""
        for tensor in (*read, *outputs):
            if _refusing and tensor.device.type == "cpu" and StorageWeakRef(tensor.untyped_storage()) not in _marked:
                raise RuntimeError("No backend type associated with device type cpu")
        own = [tensor.detach().clone() for tensor in outputs]
        operation = Operation(lambda end: start(end, own), outputs, own)
        communicator = self._all() if peer is None else self._queue(peer)
        communicator.issue(operation)
        return operation.work

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> dist.Work:
        (tensor,) = tensors
        return self._run(lambda lines, _: lines.to(peer).send(tensor), tensors, [], peer)

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> dist.Work:
        return self._run(lambda lines, own: lines.to(peer).receive(*own), [], tensors, peer)

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        chosen = opts or c10d.AllreduceOptions()
        return self._run(lambda gloo, own: gloo.allreduce(own, chosen), [], tensors)

    def allreduce_coalesced(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        chosen = opts or c10d.AllreduceCoalescedOptions()
        return self._run(lambda gloo, own: gloo.allreduce_coalesced(own, chosen), [], tensors)

    def broadcast(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        chosen = opts or c10d.BroadcastOptions()
        if chosen.rootRank == self._rank:
            return self._run(lambda gloo, _: gloo.broadcast(tensors, chosen), tensors, [])
        return self._run(lambda gloo, own: gloo.broadcast(own, chosen), [], tensors)

    def reduce(self, tensors: list[torch.Tensor], opts: Any) -> dist.Work:
        return self._run(lambda gloo, own: gloo.reduce(own, opts), [], tensors)

    def barrier(self, opts: Any = None) -> dist.Work:
        chosen = opts or c10d.BarrierOptions()
        return self._run(lambda gloo, _: gloo.barrier(chosen), [], [])

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        chosen, (row,) = opts or c10d.AllgatherOptions(), outputs
        return self._run(lambda gloo, own: gloo.allgather([own], inputs, chosen), inputs, row)

    def gather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any) -> dist.Work:
        row = outputs[0] if outputs else []
        return self._run(lambda gloo, own: gloo.gather([own] if own else [], inputs, opts), inputs, row)

    def scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any) -> dist.Work:
        return self._run(lambda gloo, own: gloo.scatter(own, inputs, opts), list(chain(*inputs)), outputs)

    def alltoall(self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        chosen = opts or c10d.AllToAllOptions()
        return self._run(lambda gloo, own: gloo.alltoall(own, inputs, chosen), inputs, outputs)

    def all_to_all_single(
        self, output: torch.Tensor, input: torch.Tensor, out_sizes: list[int], in_sizes: list[int], opts: Any = None
    ) -> dist.Work:
        chosen = opts or c10d.AllToAllOptions()
        sizes = list(out_sizes or []), list(in_sizes or [])
        return self._run(lambda gloo, own: gloo.alltoall_base(*own, input, *sizes, chosen), [input], [output])

    def all_gather_single(self, output: torch.Tensor, input: torch.Tensor, opts: Any = None) -> dist.Work:
        chosen = opts or c10d.AllgatherOptions()
        return self._run(lambda gloo, own: gloo._allgather_base(*own, input, chosen), [input], [output])

    def all_gather_single_coalesced(
        self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None
    ) -> dist.Work:
        return [self.all_gather_single(*pair) for pair in zip(outputs, inputs, strict=True)][-1]

    def reduce_scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any) -> dist.Work:
        whole = torch.cat([part.reshape(-1) for part in inputs[0]])
        return self.reduce_scatter_single(outputs[0], whole, opts)

    def reduce_scatter_single(self, output: torch.Tensor, input: torch.Tensor, opts: Any = None) -> dist.Work:
        """As gloo does it: everything is added up everywhere, and each keeps its part. gloo's own has no future."""
        chosen = c10d.AllreduceOptions()
        chosen.reduceOp = (opts or c10d.ReduceScatterOptions()).reduceOp
        total = input.detach().reshape(-1).clone()

        def start(gloo: Any, own: list[torch.Tensor]) -> Any:
            future = gloo.allreduce([total], chosen).get_future()
            return future.then(lambda _: own[0].view(-1).copy_(total.chunk(self._size)[self._rank]))

        return self._run(start, [input], [output])

    def reduce_scatter_single_coalesced(
        self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None
    ) -> dist.Work:
        pairs = zip(outputs, inputs, strict=True)
        return [self.reduce_scatter_single(output, input, opts) for output, input in pairs][-1]
