"""What a controller that comes back makes of the record and of what the living say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shoal.decisions.actions import CommitLate, Form, Generation, Stop
from shoal.decisions.events import Lost
from shoal.decisions.modes import Running
from shoal.decisions.readopt import Living, Past, as_lived, heard, rebuild, unrecorded
from shoal.decisions.shape import Shape
from shoal.plan import Seat
from shoal.protocol.said import Ack, Acked, Committed
from tests.support.decisions import Stepped

SHAPE = Shape(2, 2, 100, lambda step, workers: 2)
CELLS = {0: ("a0", "a1"), 1: ("b0", "b1")}
PAST = Past(5, CELLS, {0: 0, 1: 3}, committed=40, evaluated=0, checkpoint=20)
LIVING = {
    worker: Living(f"n{cell}", (cell, rank), PAST.attempts[cell], 5, "inside")
    for cell, crew in CELLS.items()
    for rank, worker in enumerate(crew)
}


def test_if_all_are_in_place_training_never_notices() -> None:
    state, events = rebuild(SHAPE, PAST, LIVING)
    assert list(events) == []
    assert (state.mode, state.generation, state.committed) == (Running((0, 1)), 5, 40)
    assert state.seats["b1"] == Seat(1, 1)


def test_who_died_meanwhile_is_lost_now() -> None:
    living = {worker: said for worker, said in LIVING.items() if worker != "b0"} | {"s0": Living("n9")}
    state, events = rebuild(SHAPE, PAST, living)
    run = Stepped(state, in_place=True)
    actions = run.feed(*events)
    assert isinstance(events[0], Lost)
    assert [a.broken for a in actions if isinstance(a, Stop)] == [(1,)]
    acks = [Acked(w, 5, Ack(41, rank=0)) for w in ("a0", "a1")] + [Acked("b1", 5, Ack(41, out=True, rank=1))]
    actions = run.feed(*acks)
    (form,) = [a for a in actions if isinstance(a, Form)]
    assert form.members == ("s0", "b1")
    assert form.attempt > max(PAST.attempts.values())
    (generation,) = [a for a in actions if isinstance(a, Generation)]
    assert (generation.generation, generation.steps, list(generation.cells)) == (6, 41, [0])


def test_who_never_heard_of_the_last_generation_ends_it() -> None:
    behind = replace(LIVING["a1"], generation=4, phase="stopped")
    state, events = rebuild(SHAPE, PAST, LIVING | {"a1": behind})
    actions = Stepped(state, in_place=True).feed(*events)
    assert [a.broken for a in actions if isinstance(a, Stop)] == [()]


def test_who_left_its_cell_breaks_it() -> None:
    state, events = rebuild(SHAPE, PAST, LIVING | {"b1": Living("n1", None, 3, 5, "failed")})
    actions = Stepped(state, in_place=True).feed(*events)
    assert [a.broken for a in actions if isinstance(a, Stop)] == [(1,)]


def test_a_run_without_a_generation_is_gathered_anew() -> None:
    state, events = rebuild(SHAPE, Past(checkpoint=20, committed=20), {w: Living("n1") for w in "abcd"})
    actions = Stepped(state, in_place=True).feed(*events)
    assert [(a.cell, a.restore) for a in actions if isinstance(a, Form)] == [(0, 20), (1, 20)]


def test_the_journal_is_read_from_the_last_session_only() -> None:
    old = {"time": 0.0, "kind": "generation", "generation": 9, "cells": {"0": ["x", "y"]}, "attempts": {"0": 7}}
    start = {"kind": "run_started"}
    new = {"time": 0.0, "kind": "generation", "generation": 1, "cells": {"0": ["a0", "a1"]}, "attempts": {"0": 2}}
    evaluation = {"kind": "evaluation", "step": 10}
    assert Past.read([old, start], 7, 5) == Past(committed=7, checkpoint=5)
    assert Past.read([old, start, new, evaluation], 17, 5) == Past(1, {0: ("a0", "a1")}, {0: 2}, 17, 10, 5)


# ---- a record that is behind: the disk of the controller before took nothing any more


def lived_on(**changed: Living) -> dict[str, Living]:
    """Workers in generation 7, at step 55, in which cell 1 was formed again with `s0` in the place of `b0`."""
    at = {"a0": (0, 0, 0), "a1": (0, 1, 0), "s0": (1, 0, 4), "b1": (1, 1, 4)}
    said = {w: Living(f"n{c}", (c, r), attempt, 7, "inside", 55) for w, (c, r, attempt) in at.items()}
    return said | changed


def test_a_generation_that_is_not_on_record_is_taken_from_the_living_and_ended() -> None:
    living = lived_on()
    past = as_lived(SHAPE, PAST, living)
    assert (past.generation, past.cells) == (7, {0: ("a0", "a1"), 1: ("s0", "b1")})
    assert (past.committed, past.attempts) == (55, {0: 0, 1: 4})
    state, events = rebuild(SHAPE, past, living)
    run = Stepped(state, in_place=True)
    actions = run.feed(*events)
    stop = [a for a in actions if isinstance(a, Stop)]
    assert (stop[0].generation, stop[-1].broken, set(stop[0].workers)) == (7, (), {"a0", "a1", "s0", "b1"})
    ranks = {"a0": 0, "a1": 1, "s0": 0, "b1": 1}
    actions = run.feed(*(Acked(w, 7, Ack(55 + (w == "a0"), rank=r, whole=True)) for w, r in ranks.items()))
    assert [a.steps for a in actions if isinstance(a, CommitLate)] == [56, 56, 56]
    actions = run.feed(*(Acked(w, 7, Ack(56, rank=r)) for w, r in ranks.items()))
    (generation,) = [a for a in actions if isinstance(a, Generation)]
    assert (generation.generation, generation.steps) == (8, 56)


def test_of_a_generation_not_on_record_a_cell_with_an_unknown_member_is_broken() -> None:
    living = {worker: said for worker, said in lived_on().items() if worker != "s0"}
    past = as_lived(SHAPE, PAST, living)
    assert past.cells[1] == (None, "b1")
    state, events = rebuild(SHAPE, past, living)
    run = Stepped(state, in_place=True)
    actions = run.feed(*events)
    assert [a.broken for a in actions if isinstance(a, Stop)][-1] == (1,)
    acks = [Acked("a0", 7, Ack(55, rank=0)), Acked("a1", 7, Ack(55, rank=1)), Acked("b1", 7, Ack(55, out=True, rank=1))]
    actions = run.feed(*acks)
    assert [list(a.cells) for a in actions if isinstance(a, Generation)] == [[0]]


def test_a_run_that_went_back_unrecorded_is_where_its_workers_are() -> None:
    living = {worker: replace(said, steps=30) for worker, said in lived_on().items()}
    assert as_lived(SHAPE, PAST, living).committed == 30


def test_a_member_that_never_heard_of_the_unrecorded_generation_is_one_all_the_same() -> None:
    past = as_lived(SHAPE, PAST, lived_on(a1=Living("n0", (0, 1), 0, 6, "stopped", 55)))
    assert past.cells[0] == ("a0", "a1")


def test_if_all_left_the_unrecorded_generation_those_on_record_are_asked() -> None:
    gone = {worker: replace(said, seat=None, phase="failed") for worker, said in lived_on().items()}
    past = as_lived(SHAPE, PAST, gone)
    assert (past.generation, past.cells, past.committed) == (7, CELLS, 40)
    state, events = rebuild(SHAPE, past, gone)
    actions = Stepped(state, in_place=True).feed(*events)
    assert [a.broken for a in actions if isinstance(a, Stop)][-1] == (0, 1)


def test_what_is_on_record_is_not_asked_of_the_living() -> None:
    assert as_lived(SHAPE, PAST, LIVING) is PAST


def said_commit(step: int, generation: int) -> Committed:
    return Committed("w", generation, step + 1)


def on_record(*generations: int) -> list[dict[str, Any]]:
    return [{"step": step, "generation": generation} for step, generation in enumerate(generations)]


def test_commits_that_are_not_on_record_are_found_among_what_is_said_again() -> None:
    words = [said_commit(step, 6 + (step > 3)) for step in range(2, 6)]
    assert unrecorded(on_record(5, 5, 6), [*words, *words]) == words[1:]


def test_a_step_done_again_takes_the_place_of_the_one_that_was_taken_back() -> None:
    """On record: steps 0 to 4. Living again: how they were done, how the run went back to step 2, and on."""
    before = [said_commit(step, 5) for step in range(5)]
    after = [said_commit(step, 7) for step in range(2, 4)]
    assert unrecorded(on_record(5, 5, 5, 5, 5), [*before, *after, *before]) == after


def test_a_word_from_before_or_beyond_a_gap_is_no_record() -> None:
    assert unrecorded(on_record(5, 5), [said_commit(3, 5)]) == []
    assert unrecorded(on_record(7, 7), [said_commit(2, 5), said_commit(1, 5)]) == []


def test_what_the_journal_holds_of_each_workers_words() -> None:
    events: list[dict[str, Any]] = [
        {"kind": "error", "actor": "w0", "seq": 90},
        {"kind": "run_started"},
        {"kind": "note", "actor": "w0", "seq": 4},
        {"kind": "note", "actor": "w0", "seq": 7},
        {"kind": "death", "actor": "w1"},
    ]
    assert heard(events) == {"w0": 7}
