"""The backend that imitates NCCL's manners: each of its members is a thread here."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from shoal.testing import fakenccl
from shoal.testing.fakenccl import GARBAGE, FakeNccl
from tests.support.nccl_workers import settle, threads_since

pytestmark = pytest.mark.fakenccl

LOOK = 0.2
"""Seconds for which something that is stuck is watched: if it is not, it has gone on by then on most machines."""
LONG, GROUP = 60.0, 10.0
"""Seconds; a group that never connected keeps whoever drops it for five times its timeout."""
names = map(str, itertools.count())


@pytest.fixture
def store() -> dist.Store:
    return dist.PrefixStore(next(names), dist.HashStore())


@pytest.fixture
def refusing() -> Iterator[None]:
    fakenccl.refuse_cpu(True)
    yield
    fakenccl.refuse_cpu(False)


def together(store: dist.Store, do: Callable[[FakeNccl, int], Any], size: int = 2) -> list[Any]:
    """What `do` comes to on each rank; every group is aborted at the end."""
    found: list[Any] = [None] * size
    met = threading.Barrier(size)

    def rank(index: int) -> None:
        group = FakeNccl(store, index, size, timedelta(seconds=GROUP))
        try:
            found[index] = do(group, index)
        except Exception as error:
            found[index] = error
        met.wait(LONG)  # a rank that is gone is another test's matter
        group.abort()

    threads = [threading.Thread(target=rank, args=(index,), daemon=True) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LONG)
    return found


def ended(work: dist.Work) -> bool:
    """Whether it came to its end while it was watched."""
    waiting = threading.Thread(target=work.wait, daemon=True)
    waiting.start()
    waiting.join(LOOK)
    return not waiting.is_alive()


def test_collectives_come_to_what_they_should(store: dist.Store) -> None:
    def run(group: FakeNccl, rank: int) -> list[list[float]]:
        summed, part, whole, swapped = torch.full((2,), rank + 1.0), torch.empty(2), torch.empty(4), torch.empty(4)
        group.allreduce([summed]).wait()
        group.reduce_scatter_single(part, torch.arange(4.0) * (rank + 1)).wait()
        group.all_gather_single(whole, part).wait()
        group.all_to_all_single(swapped, torch.arange(4.0) + 10 * rank, [2, 2], [2, 2]).wait()
        return [tensor.tolist() for tensor in (summed, part, whole, swapped)]

    both = together(store, run)
    assert both[0] == [[3.0, 3.0], [0.0, 3.0], [0.0, 3.0, 6.0, 9.0], [0.0, 1.0, 10.0, 11.0]]
    assert both[1] == [[3.0, 3.0], [6.0, 9.0], [0.0, 3.0, 6.0, 9.0], [2.0, 3.0, 12.0, 13.0]]


def test_so_do_those_that_torch_asks_for_seldom(store: dist.Store) -> None:
    def run(group: FakeNccl, rank: int) -> list[list[float]]:
        mine = torch.full((1,), rank + 1.0)
        summed, sent, part, row = mine.clone(), mine.clone(), torch.zeros(1), torch.arange(2.0) + 10 * rank
        gathered, known, swapped = ([torch.zeros(1), torch.zeros(1)] for _ in range(3))
        root, cells = rank == 0, list(row.split(1))
        group.reduce([summed], c10d.ReduceOptions()).wait()
        group.broadcast([sent]).wait()
        group.allgather([known], [mine]).wait()
        group.gather([gathered] if root else [], [mine], c10d.GatherOptions()).wait()
        group.scatter([part], [cells] if root else [], c10d.ScatterOptions()).wait()
        group.alltoall(swapped, cells).wait()
        found = [*([summed, *gathered] if root else []), sent, *known, part, *swapped]
        listed, shares = torch.zeros(1), [torch.zeros(1), torch.zeros(1)]
        wholes, sums = [torch.zeros(2), torch.zeros(2)], [mine.clone(), mine * 2]
        group.reduce_scatter([listed], [cells], c10d.ReduceScatterOptions()).wait()
        group.reduce_scatter_single_coalesced(shares, [row, 2 * row]).wait()
        group.all_gather_single_coalesced(wholes, [mine, 2 * mine]).wait()
        group.allreduce_coalesced(sums).wait()
        group.barrier().wait()
        return [tensor.tolist() for tensor in (*found, listed, *shares, *wholes, *sums)]

    first, second = together(store, run)
    after = [[1.0, 2.0], [2.0, 4.0], [3.0], [6.0]]
    assert first == [[3.0], [1.0], [2.0], [1.0], [1.0], [2.0], [0.0], [0.0], [10.0], [10.0], [10.0], [20.0], *after]
    assert second == [[1.0], [1.0], [2.0], [1.0], [1.0], [11.0], [12.0], [12.0], [24.0], *after]


def test_torch_takes_it_for_a_backend_by_name(tmp_path: Any) -> None:
    fakenccl.register()
    fakenccl.register()  # once is enough
    file = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(fakenccl.NAME, store=file, rank=0, world_size=1, timeout=timedelta(seconds=GROUP))
    try:
        total = torch.ones(2)
        dist.all_reduce(total, group=dist.new_group([0]))
        assert total.tolist() == [1.0, 1.0]
        assert isinstance(dist.group.WORLD, FakeNccl)
    finally:
        dist.destroy_process_group()


def test_what_is_sent_first_is_received_first_whatever_the_tags_say(store: dist.Store) -> None:
    def run(group: FakeNccl, rank: int) -> list[float]:
        tensors = [torch.tensor([1.0]), torch.tensor([2.0])] if rank == 0 else [torch.zeros(1), torch.zeros(1)]
        issue, tags = (group.send, (7, 8)) if rank == 0 else (group.recv, (8, 7))
        for work in [issue([tensor], 1 - rank, tag) for tensor, tag in zip(tensors, tags, strict=True)]:
            work.wait()
        return [float(tensor) for tensor in tensors]

    assert together(store, run)[1] == [1.0, 2.0]


def test_two_that_send_to_each_other_first_are_stuck_until_they_abort(store: dist.Store) -> None:
    def run(group: FakeNccl, rank: int) -> tuple[bool, float, bool]:
        got = torch.zeros(1)
        works = [group.send([torch.ones(1)], 1 - rank, 0), group.recv([got], 1 - rank, 0)]
        gone_on = any(map(ended, works))
        group.abort()
        return gone_on, float(got), all(work.wait() and work.is_completed() for work in works)

    assert together(store, run) == [(False, GARBAGE, True)] * 2


@pytest.mark.parametrize("one_queue", [False, True])
def test_a_send_stands_before_one_to_another_peer_in_one_queue_alone(store: dist.Store, one_queue: bool) -> None:
    """Rank 1 never receives what rank 0 sends it first."""
    fakenccl.one_queue(one_queue)

    def run(group: FakeNccl, rank: int) -> bool | None:
        if rank == 0:
            for peer in (1, 2):
                group.send([torch.ones(1)], peer, 0)
        if rank != 2:
            return None
        work = group.recv([torch.zeros(1)], 0, 0)
        return ended(work) if one_queue else work.wait()

    try:
        assert together(store, run, 3)[2] is not one_queue
    finally:
        fakenccl.one_queue(False)


def test_a_message_of_another_size_is_stuck(store: dist.Store) -> None:
    def run(group: FakeNccl, rank: int) -> tuple[bool, bool]:
        work = group.send([torch.ones(2)], 1, 0) if rank == 0 else group.recv([torch.ones(3)], 0, 0)
        return ended(work), work.is_completed()

    assert together(store, run) == [(False, False)] * 2


def test_an_aborted_operation_completes_without_a_word_and_leaves_garbage(store: dist.Store) -> None:
    """Rank 1 takes no part: nothing but `abort` ends rank 0's sum, and nothing but `get_error` could tell."""

    def run(group: FakeNccl, rank: int) -> Any:
        group.eager_connect_single_device(None)
        if rank == 1:
            return None
        total = torch.ones(3)
        work = group.allreduce([total])
        assert not ended(work)
        threading.Thread(target=group.abort).start()  # any thread may
        assert work.wait()
        with pytest.raises(dist.DistBackendError, match="aborted"):
            group.allreduce([total])
        return total.tolist(), work.is_completed()

    assert together(store, run)[0] == ([GARBAGE] * 3, True)


def test_a_peer_that_is_gone_shows_in_the_error_flag_alone(store: dist.Store) -> None:
    def run(group: FakeNccl, rank: int) -> Any:
        group.eager_connect_single_device(None)
        group.wait_ready()
        if rank == 1:
            return group.abort()
        work = group.allreduce([torch.ones(3)])
        told = threading.Event()
        while group.get_error() == c10d.ErrorType.SUCCESS:
            told.wait(0.01)
        return work.is_completed(), group.get_error().name

    assert together(store, run)[0] == (False, "REMOTE_ERROR")


def test_creating_a_communicator_takes_all_its_members(store: dist.Store) -> None:
    one = FakeNccl(store, 0, 2, timedelta(seconds=GROUP))
    one.eager_connect_single_device(None)  # does not wait
    total = torch.ones(1)
    work = one.allreduce([total])
    assert not ended(work)
    assert not one._is_initialized()
    other = FakeNccl(store, 1, 2, timedelta(seconds=GROUP))
    other.allreduce([torch.ones(1)]).wait()
    work.wait()
    assert total.item() == 2.0
    assert one._is_initialized()
    one.abort()
    other.abort()


def test_a_creation_that_is_given_up_is_told_to_who_waits_for_it(store: dist.Store) -> None:
    one = FakeNccl(store, 0, 2, timedelta(seconds=1))
    threading.Timer(LOOK, one.abort).start()
    with pytest.raises(dist.DistBackendError):
        one.wait_ready()


@pytest.mark.usefixtures("refusing")
def test_cpu_tensors_are_refused_unless_they_stand_for_a_devices(store: dist.Store) -> None:
    def run(group: FakeNccl, rank: int) -> float:
        with pytest.raises(RuntimeError, match="device type cpu"):
            group.allreduce([torch.ones(4)])
        mine = fakenccl.on_device(torch.ones(4))
        group.allreduce([mine[1:3]]).wait()
        return float(mine.sum())

    assert together(store, run) == [6.0, 6.0]


def test_groups_leave_nothing_behind(store: dist.Store) -> None:
    """Half of them are stuck when they are aborted."""
    others, held = set(threading.enumerate()), 0
    for number in range(30):
        inner = dist.PrefixStore(str(number), store)

        def run(group: FakeNccl, rank: int, stuck: bool = bool(number % 2)) -> None:
            group.allreduce([torch.ones(1)]).wait()
            if rank == 0 or not stuck:
                group.allreduce([torch.ones(1)])
            group.send([torch.ones(1)], 1 - rank, 0)

        together(inner, run)
        settle(others)
        assert threads_since(others) == 0
        now = len(os.listdir("/proc/self/fd"))
        held = held or now
        assert now <= held + 4, f"descriptors: {held}, then {now} after {number} groups"
