"""Meeting before a group is built: all go in, or none does."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from shoal.worker.groups import Groups, Stopped, serve_store
from shoal.worker.step import world_broke

SIZE = 3


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    where = listener.getsockname()
    store = serve_store(listener)
    yield where
    del store


Rank = Callable[[Groups, int], object]


def together(address: tuple[str, int], do: Rank, stop_after: dict[int, float], build: float = 10.0) -> list[object]:
    """Run `do` in a thread a rank; rank r is told to stop after `stop_after[r]` seconds, by default one."""
    found: list[object] = [None] * SIZE
    start = time.monotonic()

    def rank(index: int) -> None:
        limit = stop_after.get(index, 1.0)
        groups = Groups(20.0, build, lambda: time.monotonic() - start > limit)
        groups.meet_at(address)
        try:
            found[index] = do(groups, index)
        except Stopped:
            found[index] = "left"

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    return found


def build(groups: Groups, key: str, index: int) -> object:
    groups.meet(key, index, SIZE)
    (group,) = groups.build([(key, index, SIZE)])
    return group


@pytest.mark.parametrize("trial", range(12))
def test_nobody_goes_in_alone(address: tuple[str, int], trial: int) -> None:
    dice = random.Random(trial)

    def enter(groups: Groups, index: int) -> str:
        time.sleep(dice.uniform(0, 0.02))
        groups.meet(f"race/{trial}", index, SIZE)
        return "in"

    found = together(address, enter, {dice.randrange(SIZE): dice.uniform(0, 0.03)})
    assert found in (["in"] * SIZE, ["left"] * SIZE)


def test_a_sum_over_a_group(address: tuple[str, int]) -> None:
    def add(groups: Groups, index: int) -> float:
        group = build(groups, "sum", index)
        tensor = torch.tensor([float(index)])
        groups.sum(group, tensor)
        return float(tensor)

    assert together(address, add, dict.fromkeys(range(SIZE), 20.0)) == [3.0] * SIZE


def test_who_waits_for_one_that_takes_no_part_walks_away_on_the_flag(address: tuple[str, int]) -> None:
    def add(groups: Groups, index: int) -> float:
        group = build(groups, "absent", index)
        if index:
            start = time.monotonic()
            try:
                groups.sum(group, torch.ones(1))
            except Stopped:
                return time.monotonic() - start
        time.sleep(4.0)
        return 0.0

    waited = together(address, add, {0: 20.0, 1: 2.0, 2: 2.0})
    assert all(isinstance(seconds, float) and seconds < 10.0 for seconds in waited)  # not the 20 s of the group
    assert waited[1] != "left"


def test_a_group_that_a_frozen_member_does_not_build_is_a_fault_of_communication(address: tuple[str, int]) -> None:
    def enter(groups: Groups, index: int) -> object:
        if index == 2:
            return groups.meet("frozen", index, SIZE)
        try:
            return build(groups, "frozen", index)
        except RuntimeError as error:
            return world_broke(error)

    assert together(address, enter, dict.fromkeys(range(SIZE), 60.0), build=1.0) == [True, True, None]
