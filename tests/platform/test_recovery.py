"""The phases of a recovery, fed with times."""

from __future__ import annotations

import pytest

from shoal.control.recovery import Recoveries
from shoal.ladder import Rung


def lose_node(log: Recoveries) -> None:
    log.died(1, "r/cell1/stage0/shard0@n2", "n2", "connection closed", alive=9.9, now=10.0)
    log.died(1, "r/cell1/stage0/shard1@n2", "n2", "connection closed", alive=9.95, now=10.01)


def test_a_heal_is_told_phase_by_phase() -> None:
    log = Recoveries(wanted=2)
    lose_node(log)
    log.generation([0], 10.3)  # the other cell goes on
    log.decision(Rung.HEAL, [1], "because")
    log.formed(1, 10.31)
    assert log.step([0], 10.5) == []
    log.generation([0, 1], 11.0)
    log.copied(1, 0.2)
    (record,) = log.step([0, 1], 11.6)
    assert record["phases"] == pytest.approx(
        {"detect": 0.1, "decide": 0.3, "place": 0.01, "join": 0.69, "state": 0.2, "first_step": 0.4}
    )
    assert sum(record["phases"].values()) == pytest.approx(record["full_strength"])
    assert record["next_commit"] == pytest.approx(0.6)
    assert record["full_strength"] == pytest.approx(1.7)
    assert (record["rung"], record["nodes"], len(record["actors"])) == ("heal", ["n2"], 2)
    assert record["sentence"].startswith("n2 died (connection closed): cell 1 was healed")
    assert not log.open


def test_a_drain_is_told_without_a_death() -> None:
    log = Recoveries(wanted=2)
    log.leaves(0, ["n1"], 9.0)
    log.generation([0, 1], 9.5)  # the first time it had to stay
    assert not log.open
    log.leaves(1, ["n2"], 10.0)
    log.generation([0], 10.3)
    log.formed(1, 10.3)
    log.decision(Rung.DRAIN, [1], "moved off nodes that will be taken away")
    assert log.step([0], 10.5) == []
    log.generation([0, 1], 11.0)
    (record,) = log.step([0, 1], 11.6)
    assert (record["rung"], record["nodes"], record["actors"], record["steps_lost"]) == ("drain", ["n2"], [], 0)
    assert record["sentence"].startswith("n2 will be taken away (it was announced): cell 1 left at a step boundary")


def test_a_drain_with_a_successor_is_over_when_it_has_taken_the_cells_place() -> None:
    log = Recoveries(wanted=2)
    log.leaves(1, ["n2"], 10.0)
    log.formed(1, 10.1)
    assert log.step([0, 1], 10.2) == []  # the cell still goes on
    log.generation([0], 10.4)  # another's matter: the old members of cell 1 are in it, its successor is not
    log.generation([0, 1], 10.9)
    (record,) = log.step([0, 1], 11.1)
    assert record["next_commit"] == pytest.approx(0.2)
    assert record["full_strength"] == pytest.approx(1.1)
    assert record["phases"]["join"] == pytest.approx(0.8)


def test_a_shrink_is_told_at_once_and_the_return_later() -> None:
    log = Recoveries(wanted=2)
    lose_node(log)
    log.generation([0], 10.3)
    log.decision(Rung.SHRINK, [1], "no spare")
    (record,) = log.step([0], 10.5)
    assert (record["rung"], record["full_strength"]) == ("shrink", None)
    assert log.step([0], 10.7) == []
    log.formed(1, 20.0)
    log.generation([0, 1], 21.0)
    (record,) = log.step([0, 1], 21.5)
    assert record["rung"] == "grow"
    assert record["full_strength"] == pytest.approx(11.6)


def test_a_restore_says_what_was_lost() -> None:
    log = Recoveries(wanted=2)
    lose_node(log)
    log.decision(Rung.RESTORE, [0, 1], "no cell is whole")
    log.rewound(7)
    log.formed(1, 10.2)
    log.generation([0, 1], 12.0)
    (record,) = log.step([0, 1], 12.5)
    assert (record["rung"], record["steps_lost"]) == ("restore", 7)
