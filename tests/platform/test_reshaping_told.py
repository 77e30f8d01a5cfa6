"""The account of a change of shape: phases, sentence, what was expected of it; what a new controller knows of it."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.control.recovery import Recoveries
from shoal.control.takeover import seen_before
from shoal.decisions.actions import Reshaped
from shoal.ladder import Rung
from shoal.plan.reshape import Took


def test_a_change_of_shape_is_told_phase_by_phase() -> None:
    log = Recoveries(wanted=2)
    log.died(1, "run/w@n", "n", "it broke", 9.5, 9.6)
    log.pauses(10.0)
    log.reshaped(Reshaped((1, 4), (2, 3), "more train", (3, 1), 2, (1.4, 0.5, 2_900_000)), 10.2)
    assert log.in_shape(10.3) is None  # a step of before
    log.copied(0, 0.2, 2_000_000)
    log.copied(1, 0.3, 1_000_000)
    log.generation([0, 1], 11.0)
    record = log.in_shape(11.5)
    assert record is not None
    phases = {"notice": 0.5, "pause": 0.2, "form": 0.8, "fill": 0.3, "first_step": 0.5}
    assert record["phases"] == pytest.approx(phases)
    assert (record["most"], record["expected"]) == (2_000_000, {"seconds": 1.4, "steps": 0.5, "bytes": 2_900_000})
    assert record["sentence"] == (
        "1 x 4 workers became 2 x 3 (more train): noticed 0.50 s, paused 0.20 s, formed 0.80 s (of it filled 0.30 s), "
        "first step 0.50 s: 1.50 s from the pause on, 1.40 s expected; 3.0 MB moved, 2.9 MB expected; workers idle: "
        "3 before, 1 after; 0 steps lost"
    )
    assert log.in_shape(12.0) is None


def test_a_run_that_grows_tells_of_no_death_and_of_no_size_that_nobody_knew() -> None:
    log = Recoveries(wanted=2)
    log.pauses(10.0)
    log.reshaped(Reshaped((2, 3), (2, 4), "more train", (2, 0), 2, (1.0, 0.0, None)), 10.2)
    log.generation([0, 1], 11.0)
    record = log.in_shape(11.5)
    assert record is not None
    assert (record["phases"]["notice"], record["expected"]["bytes"]) == (None, None)
    assert "(more train): paused 0.20 s, " in record["sentence"]
    assert "1.00 s expected; 0 bytes moved; workers idle: 2 before, 0 after; " in record["sentence"]


def test_where_nobody_trained_it_is_told_from_the_death_that_ended_that() -> None:
    log = Recoveries(wanted=2)
    log.died(1, "run/w@n", "n", "it broke", 1.0, 1.1)
    log.pauses(2.0)
    log.reshaped(Reshaped((1, 4), (2, 3), "more train", (3, 1), 2), 2.2)
    log.died(0, "run/v@m", "m", "it broke", 9.5, 9.6)
    log.reshaped(Reshaped((0, 3), (1, 2), "some train", (2, 0), 1, paused=False), 10.0)
    log.generation([0], 10.5)
    record = log.in_shape(11.0)
    assert record is not None
    phases = {"notice": 0.5, "pause": 0.0, "form": 0.5, "fill": 0.0, "first_step": 0.5}
    assert record["phases"] == pytest.approx(phases)


def test_a_controller_that_comes_back_knows_what_changes_of_shape_took() -> None:
    phases = {"pause": 0.2, "form": 0.8, "fill": 0.3, "first_step": 0.5}
    change = {"kind": "reshaped", "seconds": 1.5, "phases": phases, "bytes": 300, "most": 120}
    change["expected"] = {"seconds": 1.0, "steps": 0.2, "bytes": 300}
    events: list[dict[str, Any]] = [
        change,
        {"kind": "run_started"},
        {"kind": "checkpoint", "bytes": 900},
        change,
        {"kind": "death"},
    ]
    seen = seen_before(events, 7.0)
    assert (seen.since, seen.state_bytes, seen.changes) == (7.0, 900.0, (Took(1.0, 0.3, 120.0),))


def test_steps_that_were_taken_back_on_the_way_to_another_shape_are_told() -> None:
    log = Recoveries(wanted=2)
    log.rewound(3)
    log.reshaped(Reshaped((0, 4), (1, 3), "more train", (3, 0), 1, paused=False), 10.2)
    log.generation([0], 11.0)
    record = log.in_shape(11.5)
    assert record is not None
    assert (record["steps_lost"], record["phases"]["pause"]) == (3, 0.0)
    assert record["sentence"].endswith("; 3 steps lost")
    log.reshaped(Reshaped((1, 3), (1, 4), "more train", (1, 0), 1), 12.0)
    log.generation([0], 12.5)
    record = log.in_shape(13.0)
    assert record is not None
    assert record["steps_lost"] == 0


def test_a_change_of_shape_that_does_not_come_about_is_not_told() -> None:
    log = Recoveries(wanted=2)
    log.reshaped(Reshaped((1, 4), (2, 3), "more train", (3, 1), 2), 10.2)
    log.decision(Rung.COMBINE, [0], "because")
    log.generation([0], 11.0)
    assert log.in_shape(11.5) is None
