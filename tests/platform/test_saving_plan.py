"""When to save and to copy."""

from __future__ import annotations

import math

import pytest

from shoal.control.takeover import failed_before
from shoal.saving import interval
from shoal.saving.interval import Cost, between, mean_time, steps_between
from shoal.saving.pace import Pace, agreed
from shoal.saving.rhythm import MOST, Rhythm, copies_every


@pytest.mark.parametrize(("cost", "mean"), [(1.0, 10_000.0), (20.0, 10_800.0), (0.05, 500.0)])
def test_no_other_interval_loses_less(cost: float, mean: float) -> None:
    best = between(Cost(cost, 0.0), mean)
    assert best == pytest.approx(math.sqrt(2 * cost * mean), rel=0.1)
    least = interval.lost(best, cost, mean)
    for factor in (0.3, 0.7, 1.5, 3.0):
        assert interval.lost(best * factor, cost, mean) > least


def test_what_has_failed_counts_beside_what_is_known_beforehand() -> None:
    alone = mean_time(16_384, 0, 0.0)
    assert alone == pytest.approx(54 * 24 * 3600 / 466)
    assert mean_time(1, 0, 0.0) == pytest.approx(16_384 * alone)
    assert mean_time(16_384, 10, 3600.0) < alone / 5, "a run that fails often saves often"
    assert mean_time(16_384, 0, 10 * alone) > 10 * alone, "and one that does not, seldom"
    assert mean_time(4, 1000, 1e6) == pytest.approx(1e6 / 1000, rel=0.1), "in the end only what was seen counts"


def test_saves_neither_take_over_nor_stay_away() -> None:
    assert between(Cost(0.001, 0.001), 1e9) == pytest.approx(math.sqrt(2 * 0.001 * 1e9), rel=0.1)
    assert between(Cost(5.0, 5.0), 1e12) == interval.LONGEST
    assert between(Cost(1.0, 0.0), 0.1) == 20.0, "training keeps 95 of 100 seconds whatever fails"
    assert between(Cost(0.0, 30.0), 100.0) == 60.0, "the next begins when the one before has long been whole"
    assert steps_between(Cost(1.0, 0.0), 2.0, 10_000.0) == round(between(Cost(1.0, 0.0), 10_000.0) / 2)
    assert steps_between(Cost(0.0, 0.0), 100.0, 1.0) == 1


def test_copies_take_the_part_of_the_steps_that_they_may() -> None:
    for part in (0.001, 0.02, 0.021, 0.5, 3.0):
        every = copies_every(part)
        assert part / every <= 0.02
        assert every == 1 or part / (every - 1) > 0.02
    assert [copies_every(part) for part in (0.0, 1e6, math.inf, math.nan)] == [1, MOST, MOST, MOST]


def test_copies_follow_the_steps_of_a_job_or_what_they_cost() -> None:
    assert [steps for steps in range(13) if Rhythm(4).due(steps)] == [0, 4, 8, 12]
    assert not any(Rhythm(0).due(steps) for steps in range(9))
    assert not Rhythm(4).asks(3)
    workers = [Rhythm("auto") for _ in range(2)]
    copied: list[list[int]] = [[], []]
    for generation in (100, 117):  # the second begins before the first has copied again
        for one in workers:
            one.began(generation)
        for steps in range(generation, generation + 17):
            asked = [one.asks(steps) for one in workers]
            assert asked == [steps == generation + 3] * 2
            if all(asked):
                told = [one.part for one in workers]
                assert told == pytest.approx([0.1, 0.2])
                for one in workers:
                    one.heard(told)
            for one, seconds, found in zip(workers, (0.1, 0.2), copied, strict=True):
                one.stepped(steps + 1, 1.0 if steps == generation + 2 else 9.0)
                if one.due(steps + 1):
                    one.copied(steps + 1, seconds)
                    found.append(steps + 1)
    assert copied[0] == copied[1] == [101, 110, 118, 127], "and at the beginning of each, whatever it costs"


def test_who_could_not_time_a_copy_makes_none_often() -> None:
    one = Rhythm("auto")
    one.began(0)
    one.heard([0.1, math.nan])
    assert [steps for steps in range(1, 2001) if one.due(steps)] == [MOST, 2 * MOST]


def test_a_cell_saves_by_the_jobs_steps_or_by_what_it_costs() -> None:
    assert not any(Pace(0).due(steps) for steps in range(1, 101))
    fixed, found = Pace(25), list[int]()
    fixed.entered(25, 5.0)  # a checkpoint of 25 is what it began from
    for steps in range(25, 130):
        if fixed.due(steps) and steps not in (75, 76):  # it is due until it is begun
            fixed.began(steps)
            found.append(steps)
    assert found == [50, 77, 100, 125]
    pace = Pace("auto")
    pace.entered(100, 5.0)
    pace.entered(105, 7.0)
    word = {"lost": 0.0, "written": 4.0, "step": 1.0, "mean": 1.0}  # written in half of the time between two
    found = []
    for steps in range(101, 160):
        if pace.due(steps):
            pace.began(steps)
            found.append(steps)
        if found and steps == found[-1] + 6 and len(found) < 3:
            pace.heard([word])
        if len(found) == 3 and steps == found[-1] + 6:
            pace.heard([])  # it came to nothing
    assert found == [110, 118, 126]


def test_what_a_rank_tells_of_its_steps() -> None:
    pace = Pace("auto")
    pace.entered(0, 100.0)
    for seconds in [9.0] * 5 + [1.0, 2.0, 3.0] * 3:
        pace.stepped(seconds)
    assert pace.told() == {"step": 2.0, "mean": 100.0}
    assert Pace(5).told() is None


def test_ranks_that_hear_the_same_save_at_the_same_step() -> None:
    words = [{"lost": lost, "written": 1.0, "step": 0.5, "mean": mean} for lost, mean in ((0.1, 900.0), (0.2, 1.0))]
    assert agreed(words) == steps_between(Cost(0.2, 1.0), 0.5, 900.0) == round(math.sqrt(2 * 0.2 * 900) * 2)


def test_a_controller_that_comes_back_knows_what_failed() -> None:
    kinds = [
        ("run_started", None),
        ("generation", 0),
        ("death", 1),
        ("run_started", None),
        ("generation", 0),
        ("death", None),
        ("generation", 1),
        ("death", 0),
        ("death", 0),
        ("generation", 2),
        ("death", 1),
    ]
    events = [
        {"kind": kind, "time": float(at), "generation": what, "cell": what} for at, (kind, what) in enumerate(kinds)
    ]
    assert failed_before(events, 99.0) == (3.0, 2)
    assert failed_before([], 99.0) == (99.0, 0)
