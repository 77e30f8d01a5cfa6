"""Deadlines learned from steps and signs of life; times are fed, no clock runs."""

from __future__ import annotations

import pytest

from shoal.decisions.watchdog import Watchdog
from shoal.protocol.said import Phase
from shoal.timeouts import Timeouts


def trained(seconds: float, patience: float = 20.0) -> Watchdog:
    dog = Watchdog(Timeouts(patience))
    for _ in range(10):
        dog.step(seconds)
    return dog


def test_nothing_is_believed_before_some_steps() -> None:
    dog = Watchdog(Timeouts(20.0))
    dog.step(0.1)
    assert dog.silence(Phase.INSIDE) == dog.stuck() == 20.0


@pytest.mark.parametrize(("step", "deadline"), [(0.05, 0.55), (0.4, 1.6), (3.0, 9.4), (60.0, 20.0)])
def test_silence_is_three_steps_within_bounds(step: float, deadline: float) -> None:
    assert trained(step).silence(Phase.INSIDE) == pytest.approx(deadline)


def test_a_slow_machine_is_not_a_dead_one() -> None:
    dog = trained(0.1)
    dog.look(1.0)
    assert dog.silence(Phase.ACROSS) == pytest.approx(3.0)
    assert dog.silence(Phase.ACROSS, usual=0.5) == pytest.approx(4.0)
    for _ in range(2000):
        dog.look(0.0)
    assert dog.silence(Phase.ACROSS) == pytest.approx(0.7)  # what was seen long ago is forgotten


@pytest.mark.parametrize("phase", [Phase.FORMING, Phase.SAVING])
def test_other_phases_have_longer_and_longer_still_where_all_are_silent(phase: Phase) -> None:
    dog = trained(0.1)
    assert dog.silence(phase) == 5.0
    assert dog.silence(phase, usual=2.0) == 16.0
    dog.look(3.0)
    assert dog.silence(phase) == 9.0


def test_who_only_waits_may_stand_still_for_less_long_than_who_works() -> None:
    dog = trained(0.1)
    waits, meets = dog.still([Phase.ACROSS]), dog.still([Phase.ACROSS, Phase.JOINING])
    computes, saves = dog.still([Phase.ACROSS, Phase.INSIDE]), dog.still([Phase.SAVING])
    assert (waits, meets, computes, saves) == (20.0, 120.0, 600.0, 6000.0)
    assert trained(30.0).still([Phase.ACROSS]) == 300.0  # of steps that take long anyway
    assert Watchdog(Timeouts(20.0)).still([Phase.ACROSS]) == 20.0


def test_one_slow_step_does_not_move_the_deadline() -> None:
    dog = trained(0.2)
    dog.step(15.0)
    assert dog.silence(Phase.INSIDE) == pytest.approx(1.0)


def test_all_timeouts_stand_in_order() -> None:
    rows = Timeouts(20.0).explained()
    assert [seconds for _, seconds, _ in rows] == sorted(seconds for _, seconds, _ in rows)
    named = {name: seconds for name, seconds, _ in rows}
    assert named["look"] < named["silence"] < named["build"] < named["patience"] < named["collective"] < named["orphan"]
    doubled = {name: seconds for name, seconds, _ in Timeouts(40.0).explained()}
    assert doubled == {name: pytest.approx(2 * seconds) for name, seconds in named.items()}


def test_in_a_large_run_each_worker_says_that_it_lives_more_seldom_and_may_be_silent_for_longer() -> None:
    few, many = Timeouts(60.0, 1024), Timeouts(60.0, 16384)
    assert (few.beat, many.beat) == (0.6, pytest.approx(6.0))
    assert many.silence == pytest.approx(3 * many.beat)
    assert few.silence == Timeouts(60.0).silence
    assert Timeouts(60.0, 10**6).silence < 60.0
