"""When a save is begun that could not be, or came to nothing, and that all workers begin the same ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

from shoal.saving.chances import AHEAD, LONGEST, Chances
from shoal.saving.pace import Pace


def saves(
    steps: int, every: int, busy: Callable[[int, int], bool], failed: Callable[[int], bool], workers: int = 2
) -> list[int]:
    """Steps at which all save. busy: whether the save begun at a step is under way at another, with some worker;
    failed: whether the one begun at a step comes to nothing, in the eyes of some."""
    all_of_them, paces, begun = [Chances() for _ in range(workers)], [Pace(every) for _ in range(workers)], list[int]()
    for step in range(steps):
        now = {one.now(step) for one in all_of_them}
        assert len(now) == 1, "all or none"
        if now.pop():
            begun.append(step)
            for one, pace in zip(all_of_them, paces, strict=True):
                one.began(step)
                pace.began(step)
        last = begun[-1] if begun else -1
        said = []
        for at, (one, pace) in enumerate(zip(all_of_them, paces, strict=True)):
            known = bool(begun) and at == workers - 1
            due = pace.due(step + AHEAD)
            said.append(
                one.word(
                    step, due=due, busy=known and busy(last, step), failed=bool(begun) and at == 0 and failed(last)
                )
            )
        for one in all_of_them:
            one.heard(step, wanted=any(word[0] for word in said), busy=any(word[1] for word in said))
    return begun


def test_what_goes_well_is_saved_when_it_is_due() -> None:
    assert saves(60, 10, lambda *_: False, lambda _: False) == [10, 20, 30, 40, 50]


def test_one_that_failed_is_begun_anew_later_each_time() -> None:
    found = saves(300, 100, lambda *_: False, lambda _: True)
    gaps = [later - earlier for earlier, later in pairwise(found[:7])]
    assert (found[0], gaps) == (100, [2, 2, 4, 8, 16, 32])
    assert max(later - earlier for earlier, later in pairwise(found)) == LONGEST
    assert 200 in found, "what is due is a chance too"
    assert saves(210, 100, lambda *_: False, lambda begun: begun < 104) == [100, 102, 104, 200]


def test_one_that_is_under_way_is_not_waited_for_and_what_was_due_is_made_up_for() -> None:
    found = saves(70, 10, lambda begun, step: begun == 10 and step < 33, lambda _: False)
    assert found == [10, 35, 40, 50, 60]


def test_what_a_generation_decided_and_did_not_begin_is_still_wanted_in_the_next() -> None:
    one = Chances()
    assert one.word(8, due=True, busy=False, failed=False) == (True, False)
    one.heard(8, wanted=True, busy=False)
    one.entered()
    assert not one.now(10)
    assert one.word(9, due=False, busy=False, failed=False) == (True, False)


def test_what_was_decided_is_told_as_under_way_before_it_is() -> None:
    one = Chances()
    one.heard(8, wanted=True, busy=False)
    assert one.word(9, due=True, busy=False, failed=False) == (True, True)
    one.heard(9, wanted=True, busy=True)
    assert one.now(10)
    assert not one.now(10)


def test_whatever_each_worker_knows_all_begin_the_same_saves() -> None:
    """At random: how long saves take with whom, who takes which for failed, and whose cell is new."""
    for seed in range(50):
        dice = random.Random(seed)
        ends = {step: [step + dice.randrange(1, 9) for _ in range(3)] for step in range(400)}
        lost = {step: dice.random() < 0.3 for step in range(400)}
        found = saves(
            300, 7, lambda begun, step, ends=ends: step < max(ends[begun]), lambda begun, lost=lost: lost[begun], 3
        )
        assert len(found) > 15
