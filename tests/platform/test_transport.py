"""What carries tensors between cells where nothing raises: on the backend that imitates NCCL, a rank in each thread."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shoal.testing import fakenccl
from shoal.testing.fakenccl import GARBAGE
from shoal.timeouts import Timeouts
from shoal.worker import nccl
from shoal.worker.carriers import choose
from shoal.worker.faults import Fault, meaning
from shoal.worker.groups import Groups, Stopped
from shoal.worker.lastresort import LastResort
from shoal.worker.nccl import NcclTransport
from shoal.worker.transport import GlooCommunicator, GlooTransport, Transport
from tests.support.nccl_workers import LONG, PATIENCE, Worker, settle, threads_since, together

pytestmark = pytest.mark.fakenccl


@pytest.fixture(autouse=True)
def _on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.mark.parametrize("bucket", [nccl.BUCKET, 64])
def test_sums_and_copies_in_buckets(bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "BUCKET", bucket)

    def run(worker: Worker) -> Any:
        group, total = worker.group(), torch.arange(100.0) * (worker.rank + 1)
        worker.groups.sum(group, total)
        copied = torch.full((7, 11), worker.rank, dtype=torch.int64)
        worker.groups.copy(group, copied)
        worker.groups.leave(group)
        return torch.equal(total, torch.arange(100.0) * 3), int(copied.sum())

    assert together(run) == [(True, 0)] * 2


def test_who_waits_for_one_that_takes_no_part_walks_away_and_leaves_nothing_running() -> None:
    met = threading.Barrier(2)

    def run(worker: Worker) -> Any:
        group = worker.group()
        worker.groups.until(group.ready)
        if worker.rank:
            met.wait(LONG)
            return worker.groups.leave(group)
        total = torch.ones(3)
        with pytest.raises(Stopped):
            worker.groups.sum(group, total, worker.off.set)
        for thread in threading.enumerate():
            if thread.name == "nccl-abort":
                thread.join(LONG)
        met.wait(LONG)
        return total.tolist()

    assert together(run) == [[GARBAGE] * 3, None]


def test_who_is_stopped_before_all_members_are_there_walks_away() -> None:
    def run(worker: Worker) -> None:
        worker.off.set()
        worker.groups.sum(worker.group(), torch.ones(1))

    (alone,) = together(lambda worker: run(Worker(0, 2, worker.store)), 1)
    assert isinstance(alone, Stopped)


def test_an_aborted_sum_is_never_taken_for_a_finished_one() -> None:
    def run(worker: Worker) -> Any:
        group = worker.group()
        worker.groups.until(group.ready)
        worker.groups.sum(group, torch.ones(1), group.abandon if worker.rank == 0 else worker.off.set)

    one, other = together(run)
    assert meaning(one) is Fault.PEER
    assert "garbage" in str(one)
    assert isinstance(other, Stopped | dist.DistBackendError)


def test_a_flagged_error_ends_a_wait_that_nothing_else_would() -> None:
    def run(worker: Worker) -> Any:
        group = worker.group()
        worker.groups.until(group.ready)
        if worker.rank:
            return group.abandon()  # it is gone
        return worker.groups.sum(group, torch.ones(1))

    one, _ = together(run)
    assert meaning(one) is Fault.PEER
    assert "REMOTE_ERROR" in str(one)


def test_a_hundred_generations_leave_nothing_behind() -> None:
    """Every third is left with a sum that is stuck. Half of all members free what the others still wait in."""
    held: list[tuple[int, int]] = []
    met, others = threading.Barrier(2), set(threading.enumerate())

    def run(worker: Worker) -> None:
        for number in range(100):
            group = worker.group(f"cross/{number}")
            worker.groups.sum(group, torch.ones(8))
            met.wait(LONG)  # who leaves takes what the other is still in with it
            if number % 3 == 0 and worker.rank == 0:
                worker.off.set()
                with pytest.raises(Stopped):
                    worker.groups.sum(group, torch.ones(8))
                worker.off.clear()
            worker.groups.leave(group)
            worker.groups.retire()
            met.wait(LONG)
            if worker.rank == 0:
                settle(others)
                held.append((threads_since(others), len(os.listdir("/proc/self/fd"))))
            met.wait(LONG)

    assert together(run) == [None, None]
    assert len(held) == 100
    threads, descriptors = (max(one[kind] for one in held[:10]) for kind in (0, 1))
    assert max(one[0] for one in held) <= threads, held
    assert max(one[1] for one in held) <= descriptors + 4, held


# ---- the last resort


def test_an_abort_that_does_not_come_back_ends_the_process() -> None:
    ended = threading.Event()
    stuck = threading.Event()

    class Stuck:
        def abort(self) -> None:
            stuck.wait(LONG)

        def eager_connect_single_device(self, device: torch.device) -> None: ...

        def allreduce(self, tensors: list[torch.Tensor]) -> None: ...

        def get_error(self) -> str:
            return "ErrorType.SUCCESS"

    last = LastResort(0.01, lambda what: ended.set())
    group: Any = Stuck()
    transport = NcclTransport("fakenccl", Stuck, lambda *_: group, torch.device("cpu"), last, bound=False)
    transport.make(dist.HashStore(), 0, 2).abandon()
    assert ended.wait(LONG)
    stuck.set()


def test_a_thread_that_comes_back_from_a_cut_in_time_ends_nothing() -> None:
    said: list[str] = []
    last = LastResort(LONG, said.append)
    transport = fakenccl.transport(Timeouts(PATIENCE), last)
    before = set(threading.enumerate())
    transport.cut()
    with pytest.raises(dist.DistBackendError, match="cut"):
        transport.check()
    transport.freed()
    settle(before)
    assert (said, threads_since(before)) == ([], 0)
    transport.close()
    transport.check()


def test_gloo_carries_what_lies_on_the_cpu() -> None:
    transport = choose("cpu", Timeouts(PATIENCE))
    assert isinstance(transport, GlooTransport)
    assert (transport.backend, transport.device_id, transport.keyed) == ("gloo", None, True)


def test_what_lies_on_the_cpu_travels_over_the_device() -> None:
    """On the meta device, which holds no value: what comes back is not looked at."""
    given: list[str] = []

    class Group:
        def eager_connect_single_device(self, device: torch.device) -> None: ...

        def allreduce(self, tensors: list[torch.Tensor]) -> Group:
            given.extend(tensor.device.type for tensor in tensors)
            return self

        def broadcast(self, tensors: list[torch.Tensor], options: Any) -> Group:
            return self.allreduce(tensors)

        def is_completed(self) -> bool:
            return True

        def get_error(self) -> str:
            return "ErrorType.SUCCESS"

    last = LastResort(LONG, lambda what: None)
    transport = NcclTransport("fakenccl", Group, lambda *_: Group(), torch.device("meta"), last, bound=False)
    group = transport.make(dist.HashStore(), 0, 2)
    groups_of(transport).until(group.ready)
    group.sum(torch.ones(3))
    group.copy(torch.ones(3))
    assert given == ["meta"] * 3, "the first collective is of the members' meeting"


def test_a_cells_world_is_of_what_carries_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **how: made.update(how, backend=backend))
    monkeypatch.setattr(dist.distributed_c10d, "_set_pg_timeout", lambda *_: None)
    device, last = torch.device("meta"), LastResort(LONG, lambda what: None)
    never: Any = None
    groups_of(NcclTransport("cpu:gloo,cuda:nccl", never, never, device, last, bound=True)).world("world", 0, 2)
    assert (made["backend"], made["device_id"]) == ("cpu:gloo,cuda:nccl", device)


def test_what_was_left_is_freed_once_the_next_generation_stands() -> None:
    freed = threading.Event()

    class Left(GlooCommunicator):
        def free(self) -> None:
            freed.set()

    groups = groups_of(GlooTransport(PATIENCE))
    groups.leave(Left(None))
    groups.retire()
    assert freed.wait(LONG)


def groups_of(transport: Transport) -> Groups:
    """Those of a worker that nobody meets."""
    rendezvous: Any = SimpleNamespace(scope="")
    return Groups(PATIENCE, PATIENCE, lambda: False, rendezvous, transport)
