"""Slow cells are named once, and only if there are others to compare with."""

from __future__ import annotations

from shoal.decisions.figures import suspects
from shoal.decisions.stragglers import STEPS, Slow, Stragglers

CREW, CELLS = ["a0", "a1", "b0", "b1", "c0", "c1"], [0, 0, 1, 1, 2, 2]


def feed(stragglers: Stragglers, slow: float, steps: int) -> list[Slow]:
    return [one for _ in range(steps) for one in stragglers.step(CREW, CELLS, [1.0, 1.0, 1.1, slow, 1.0, 0.9])]


def test_a_slow_cell_is_named_once_with_its_slowest_worker() -> None:
    stragglers = Stragglers()
    assert feed(stragglers, 2.0, STEPS - 1) == []
    assert feed(stragglers, 2.0, 3 * STEPS) == [Slow("b1", 1, 2.0, 1.0)]
    assert feed(stragglers, 1.0, 1) == []
    assert len(feed(stragglers, 2.0, STEPS)) == 1  # slow again, told again


def test_a_passing_delay_is_no_straggler_and_of_two_neither_is() -> None:
    stragglers = Stragglers()
    for _ in range(10):
        assert feed(stragglers, 5.0, STEPS // 2) + feed(stragglers, 1.0, 1) == []
    for _ in range(3 * STEPS):
        assert stragglers.step(CREW[:4], CELLS[:4], [1.0, 1.0, 9.0, 9.0]) == []


def test_the_replica_that_differs_from_most_is_named() -> None:
    assert suspects([1.0, 2.0, 1.0, 2.0, 1.0, 2.0], [0, 1, 4], 2) == []
    assert suspects([1.0, 2.0, 1.0, 3.0, 1.0, 2.0], [0, 1, 4], 2) == [1]
    assert suspects([1.0, 2.0, 9.0, 2.0, 1.0, 7.0], [0, 1, 4], 2) == [1, 4]
    assert suspects([1.0, 2.0], [0, 1], 1) == [0, 1]  # nobody can say which
    assert suspects([1.0, 2.0, 3.0], [0, 1, 2], 1) == [0, 1, 2]
