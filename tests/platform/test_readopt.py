"""What a controller that comes back makes of the record and of what the living say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shoal.control.decide import decide
from shoal.control.messages import Acked, Form, Generation, Lost, Stop
from shoal.control.readopt import Past, Said, rebuild
from shoal.control.state import Ack, Shape, State
from shoal.plan import Seat

SHAPE = Shape(2, 2, 100, lambda step: 2)
CELLS = {0: ("a0", "a1"), 1: ("b0", "b1")}
PAST = Past(5, CELLS, {0: 0, 1: 3}, committed=40, evaluated=0, checkpoint=20)
LIVING = {
    worker: Said(f"n{cell}", (cell, rank), PAST.attempts[cell], 5, "inside")
    for cell, crew in CELLS.items()
    for rank, worker in enumerate(crew)
}


def feed(state: State, *events: Any) -> tuple[State, list[Any]]:
    actions: list[Any] = []
    for event in events:
        state, fresh = decide(state, event)
        actions += fresh
    return state, actions


def test_if_all_are_in_place_training_never_notices() -> None:
    state, events = rebuild(SHAPE, PAST, LIVING)
    assert list(events) == []
    assert (state.mode, state.generation, state.live, state.committed) == ("running", 5, (0, 1), 40)
    assert state.seats["b1"] == Seat(1, 1)


def test_who_died_meanwhile_is_lost_now() -> None:
    living = {worker: said for worker, said in LIVING.items() if worker != "b0"} | {"s0": Said("n9")}
    state, events = rebuild(SHAPE, PAST, living)
    state, actions = feed(state, *events)
    assert isinstance(events[0], Lost)
    assert [a.broken for a in actions if isinstance(a, Stop)] == [(1,)]
    acks = [Acked(w, 5, Ack(41, rank=0)) for w in ("a0", "a1")] + [Acked("b1", 5, Ack(41, out=True, rank=1))]
    state, actions = feed(state, *acks)
    (form,) = [a for a in actions if isinstance(a, Form)]
    assert form.members == ("s0", "b1")
    assert form.attempt > max(PAST.attempts.values())
    (generation,) = [a for a in actions if isinstance(a, Generation)]
    assert (generation.generation, generation.steps, list(generation.cells)) == (6, 41, [0])


def test_who_never_heard_of_the_last_generation_ends_it() -> None:
    behind = replace(LIVING["a1"], generation=4, phase="stopped")
    state, events = rebuild(SHAPE, PAST, LIVING | {"a1": behind})
    state, actions = feed(state, *events)
    assert [a.broken for a in actions if isinstance(a, Stop)] == [()]


def test_who_left_its_cell_breaks_it() -> None:
    state, events = rebuild(SHAPE, PAST, LIVING | {"b1": Said("n1", None, 3, 5, "failed")})
    state, actions = feed(state, *events)
    assert [a.broken for a in actions if isinstance(a, Stop)] == [(1,)]


def test_a_run_without_a_generation_is_gathered_anew() -> None:
    state, events = rebuild(SHAPE, Past(checkpoint=20, committed=20), {w: Said("n1") for w in "abcd"})
    state, actions = feed(state, *events)
    assert [(a.cell, a.restore) for a in actions if isinstance(a, Form)] == [(0, 20), (1, 20)]


def test_the_journal_is_read_from_the_last_session_only() -> None:
    old = {"kind": "generation", "generation": 9, "cells": {"0": ["x", "y"]}, "attempts": {"0": 7}}
    start = {"kind": "run_started"}
    new = {"kind": "generation", "generation": 1, "cells": {"0": ["a0", "a1"]}, "attempts": {"0": 2}}
    evaluation = {"kind": "evaluation", "step": 10}
    assert Past.read([old, start], 7, 5) == Past(committed=7, checkpoint=5)
    assert Past.read([old, start, new, evaluation], 17, 5) == Past(1, {0: ("a0", "a1")}, {0: 2}, 17, 10, 5)
