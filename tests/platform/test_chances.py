"""When a save is begun that could not be, or came to nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from shoal.saving.chances import LONGEST, Chances


def saves(steps: int, every: int, busy: Callable[[int, int], bool], failed: Callable[[int], bool]) -> list[int]:
    """Steps at which a cell saves. busy: whether the save begun at a step is under way at another; failed: whether the
    one begun at a step comes to nothing."""
    chances, begun = Chances(), list[int]()
    for step in range(1, steps + 1):
        due, now = step % every == 0, False
        if chances.asks(step, due=due):
            last = begun[-1]
            now = chances.heard(step, due=due, busy=busy(last, step), failed=failed(last))
        else:
            now = due
        if now:
            chances.began(step)
            begun.append(step)
    return begun


def test_what_goes_well_is_saved_when_it_is_due() -> None:
    assert saves(50, 10, lambda *_: False, lambda _: False) == [10, 20, 30, 40, 50]


def test_one_that_failed_is_begun_anew_later_each_time() -> None:
    found = saves(200, 100, lambda *_: False, lambda _: True)
    assert found[:7] == [100, 101, 103, 107, 115, 131, 163]
    assert found[-1] == 200  # what is due is a chance too
    assert saves(200, 100, lambda *_: False, lambda begun: begun < 107) == [100, 101, 103, 107, 200]


def test_one_that_is_under_way_is_not_waited_for_and_what_was_due_is_made_up_for() -> None:
    found = saves(60, 10, lambda begun, step: begun == 10 and step < 33, lambda _: False)
    assert found[0] == 10
    assert 33 <= found[1] < 50
    assert found[-1] == 60


def test_looks_stay_near_each_other() -> None:
    chances = Chances()
    chances.began(0)
    looks = []
    for step in range(1, 1000):
        if chances.asks(step, due=False):
            looks.append(step)
            assert not chances.heard(step, due=False, busy=True, failed=False)
    assert max(b - a for a, b in pairwise(looks)) == LONGEST
    assert looks[:3] == [1, 3, 7]
