"""The rung by which cells take another shape, event by event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shoal.decisions.actions import Decision, Form, Generation, Hire, Recall, Refill, Reshaped, Stop
from shoal.decisions.events import (
    Changed,
    Ending,
    Event,
    Joined,
    Looked,
    Lost,
    Preemption,
    Surveyed,
    Unborn,
)
from shoal.decisions.modes import Gathering, Pausing, Running
from shoal.decisions.readopt import Living, Past, as_lived, rebuild
from shoal.decisions.shape import Shape
from shoal.ladder import Rung
from shoal.plan import Mesh, Node
from shoal.plan.reshape import Choice, Present, Stay, Survivor, Took
from shoal.protocol.said import Committed, CopyHeld, Failed, Ready
from tests.platform.protocol.support.shapes import taking
from tests.support.decisions import Run, one

THREE = taking({3: (1, 3)})


def shrunk(choose: Any = THREE, hold: float = 0.0) -> Run:
    """Two cells of two workers, of which `w11` has died: three live, and two of them train."""
    run = Run()
    run.state.shape = replace(run.state.shape, choose=choose, hold=hold)
    run.start()
    run.feed(Lost("w11", "died"))
    for worker in ("w00", "w01"):
        run.ack(worker, 5)
    run.ack("w10", 5, out=True)
    return run


def pausing() -> tuple[Run, list[Any]]:
    """The run is paused for another shape, and all have answered."""
    run = shrunk()
    run.feed(Committed("w00", run.state.generation, 6))
    run.ack("w00", 6)
    return run, run.ack("w01", 6)


def test_cells_of_another_shape_are_filled_from_what_the_living_hold() -> None:
    run, actions = pausing()
    number = run.state.shape.number
    holders = (("w00",), ("w01",))
    assert one(actions, Form) == Form(
        0, run.state.cells[0].attempt, ("w00", "w01", "w10"), shape=number, refill=Refill(6, {0: holders})
    )
    assert (run.state.shape.cells, run.state.shape.workers) == (1, 3)
    assert number > 0
    assert one(actions, Decision).rung is Rung.RESHAPE
    assert one(actions, Reshaped) == Reshaped((1, 2), (1, 3), "all of them train", (1, 0), 1, (0.0, 0.0, 0))
    attempt = run.state.cells[0].attempt
    run.feed(*(Ready(worker, 0, attempt) for worker in ("w00", "w01")))
    began = one(run.feed(Ready("w10", 0, attempt, 0.5, 100)), Generation)
    assert (began.steps, began.cells, began.heals) == (6, {0: ("w00", "w01", "w10")}, ())
    assert run.state.formers
    run.feed(Committed("w00", run.state.generation, 7))
    assert not run.state.formers


def test_whoever_is_left_out_leaves_its_world_and_keeps_its_shard() -> None:
    crews = (("w10",), ("w00",))
    run = shrunk(lambda *_: Choice(Mesh(), crews, "", 1.0, 0.0, 0, (1, 1)))
    run.feed(Committed("w00", run.state.generation, 6))
    ended = run.state.generation
    run.ack("w00", 6)
    stop = one(run.ack("w01", 6), Stop)
    assert (stop.generation, stop.broken, stop.workers, stop.shape) == (ended, (0,), ("w01",), 0)


def test_a_run_that_has_left_a_node_takes_another_shape_and_one_that_stands_there_does_not() -> None:
    run = Run()
    run.state.shape = replace(run.state.shape, choose=taking({3: (1, 3), 4: (1, 3)}))
    run.start()
    run.feed(Preemption("n2"))
    for worker in ("w00", "w01", "w10", "w11"):
        run.ack(worker, 5)
    assert run.state.live == (0,)
    assert isinstance(run.state.mode, Running)
    run.feed(Joined("s0", "n3"))
    assert isinstance(run.state.mode, Pausing)
    assert run.state.mode.reshapes
    alone = shrunk(lambda *_: Stay(""))
    alone.feed(Preemption("n1"))
    alone.state.shape = replace(
        alone.state.shape, choose=lambda *_: Choice(Mesh(), (("w10",),), "", 1.0, 0.0, 0, (1, 0))
    )
    for worker in ("w00", "w01"):
        alone.ack(worker, 6)
    assert isinstance(alone.state.mode, Running)


def test_the_former_shape_is_put_together_where_the_next_one_does_not_come_about() -> None:
    run, _ = pausing()
    attempt = run.state.cells[0].attempt
    actions = run.feed(Failed("w10", -1, "form", "a holder is gone", attempt))
    formed = one(actions, Form)
    assert (formed.members, formed.keep, formed.shape) == (("w00", "w01"), True, 0)
    assert formed.attempt > attempt  # nobody meets in a world that another shape had
    assert (run.state.shape.cells, run.state.shape.workers, run.state.formers) == (2, 2, ())
    assert one(actions, Decision).rung is Rung.COMBINE


def test_a_holders_death_before_anybody_is_filled_costs_the_steps_since_the_checkpoint() -> None:
    run, _ = pausing()
    decisions = [action for action in run.feed(Lost("w00", "died")) if isinstance(action, Decision)]
    assert [decision.rung for decision in decisions] == [Rung.RESTORE]
    assert (run.state.shape.workers, run.state.committed) == (2, 0)


def test_what_is_left_of_two_shapes_is_put_together_in_a_third() -> None:
    """`w00` alone had its shard of the former one; of the next `w10` has the first third already."""
    run = shrunk(taking({3: (1, 3), 2: (1, 2)}))
    run.feed(Committed("w00", run.state.generation, 6))
    run.ack("w00", 6)
    run.ack("w01", 6)
    number, attempt = run.state.shape.number, run.state.cells[0].attempt
    run.feed(Ready("w10", 0, attempt))
    actions = run.feed(Lost("w00", "died"))
    formed = one(actions, Form)
    assert formed.refill == Refill(6, {number: ((), (), ("w10",)), 0: ((), ("w01",))})
    assert (formed.members, formed.shape) == (("w01", "w10"), run.state.shape.number)
    assert number < run.state.shape.number
    assert one(actions, Decision).rung is Rung.RESHAPE
    # what they have is not all of it, and nobody who had something has died since
    after = run.feed(Failed("w01", -1, "form", "a range is nobody's", formed.attempt))
    assert [action.rung for action in after if isinstance(action, Decision)] == [Rung.RESTORE]


def alone(hold: float = 0.0, **changes: Any) -> Run:
    """One cell of two trains, the other is gone; then one of its workers dies."""
    run = Run()
    run.state.shape = replace(run.state.shape, choose=taking({1: (1, 1)}), hold=hold, **changes)
    run.start()
    run.feed(Lost("w10", "died"), Lost("w11", "died"))
    for worker in ("w00", "w01"):
        run.ack(worker, 5)
    return run


def test_a_run_that_has_too_few_workers_for_a_cell_waits_for_others_and_takes_a_smaller_shape_then() -> None:
    run = alone(hold=30.0)
    run.feed(Surveyed(100.0, ()), Lost("w01", "died"))
    actions = run.ack("w00", 5, out=True)
    assert [action.rung for action in actions if isinstance(action, Decision)] == [Rung.RESTORE]
    assert (isinstance(run.state.mode, Gathering), run.state.shape.workers) == (True, 2)
    assert run.feed(Surveyed(129.0, ())) == []
    actions = run.feed(Surveyed(130.0, ()))
    formed, told = one(actions, Form), one(actions, Reshaped)
    assert (formed.members, formed.restore, formed.refill) == (("w00",), 0, None)
    assert (told.before, told.after, told.paused) == ((0, 2), (1, 1), False)
    assert formed.shape == run.state.shape.number > 0


def test_copies_are_gone_back_to_in_another_shape() -> None:
    run = alone(recall=True)
    run.feed(*(CopyHeld("w00", rank, 4, run.state.copies.era) for rank in (0, 1)), Lost("w01", "died"))
    actions = run.ack("w00", 5, out=True)
    formed = one(actions, Form)
    assert formed.refill == Refill(4, copies=Recall(4, ("w00", "w00"), 0))
    assert (formed.members, formed.recall, run.state.committed) == (("w00",), None, 4)
    assert [action.rung for action in actions if isinstance(action, Decision)] == [Rung.RECALL, Rung.RESHAPE]
    began = one(run.feed(Ready("w00", 0, formed.attempt)), Generation)
    assert (began.steps, began.heals) == (4, ())


def test_copies_are_told_apart_by_the_shape_that_they_are_of() -> None:
    """Of the step at which the shape changed there may be copies of both; a keeper has the two newest of each rank."""
    run, _ = pausing()
    number, era = run.state.shape.number, run.state.copies.era
    run.feed(*(CopyHeld("w10", 0, steps, era, 0) for steps in (4, 6)))
    (former,) = run.state.formers
    assert (former.copies.held, run.state.copies.held) == ({"w10": {0: (4, 6)}}, {})
    run.feed(CopyHeld("w10", 0, 6, era, number))
    (former,) = run.state.formers
    assert (former.copies.held, run.state.copies.held) == ({"w10": {0: (6,)}}, {"w10": {0: (6,)}})
    run.feed(CopyHeld("w10", 0, 6, era, number + 1), CopyHeld("w10", 0, 6, era - 1, number))
    assert run.state.copies.held == {"w10": {0: (6,)}}


def test_shards_that_were_filled_make_a_cell_when_holders_die() -> None:
    """Two cells of one: what one of them has filled is all of the state."""
    run = shrunk(taking({3: (3, 1)}))
    run.feed(Committed("w00", run.state.generation, 6))
    run.ack("w00", 6)
    run.ack("w01", 6)
    cell = run.state.seats["w10"].cell
    run.feed(Ready("w10", cell, run.state.cells[cell].attempt))
    actions = run.feed(Lost("w00", "died"), Lost("w01", "died"))
    assert one(actions, Generation).cells == {cell: ("w10",)}
    assert isinstance(run.state.mode, Running)
    assert run.state.committed == 6


def test_a_run_that_is_stopped_on_the_way_saves_what_the_new_cells_hold() -> None:
    run, _ = pausing()
    run.feed(Ending("enough", "stopped"))
    assert isinstance(run.state.mode, Gathering)
    attempt = run.state.cells[0].attempt
    began = one(run.feed(*(Ready(worker, 0, attempt) for worker in ("w00", "w01", "w10"))), Generation)
    assert (began.save, began.halt) == (True, True)


def test_a_shape_is_asked_for_when_something_changed_or_it_is_time_to() -> None:
    asked: list[dict[str, Survivor]] = []

    def choose(living: Any, present: Present, step: int) -> Choice | Stay:
        asked.append(dict(living))
        return Stay("", 30.0)

    run = shrunk(choose)
    count = len(asked)
    run.feed(Surveyed(10.0, ()))
    assert len(asked) == count  # nothing is new, and it is not time
    run.feed(Surveyed(31.0, ()))
    assert len(asked) == count + 1
    assert (asked[-1]["w10"], asked[-1]["w01"].rank) == (Survivor("n2", None, 31.0), 1)
    run.feed(Lost("w10", "died"), Surveyed(32.0, ()))
    assert len(asked) == count + 2


def test_a_worker_that_is_started_again_on_its_node_is_waited_for() -> None:
    """`w10` lives on the node of `w11`, so that is there: the run shrinks at once, and is whole again when it comes."""
    nodes = tuple(Node(name, "", 2) for name in ("n1", "n2"))
    run = shrunk(hold=30.0)
    assert (run.state.live, run.state.coming.keys()) == ((0,), {"n2"})
    assert one(run.feed(Surveyed(1.0, nodes)), Hire) == Hire("n2")
    run.feed(Surveyed(2.0, nodes, {"new": "n2"}))
    assert isinstance(run.state.mode, Running)
    formed = one(run.feed(Joined("new", "n2")), Form)
    assert (formed.members, formed.shape, run.state.coming) == (("w10", "new"), 0, {})


@pytest.mark.parametrize(
    "event",
    [
        Surveyed(1.0, (Node("n1", "", 2), Node("n2", "", 1))),  # no slot is free
        Surveyed(1.0, (Node("n1", "", 2),)),
        Surveyed(1e6, (Node("n1", "", 2), Node("n2", "", 2)), {"new": "n2"}),
        Unborn("new", "n2", "no device"),
    ],
    ids=["no slot", "gone", "late", "unborn"],
)
def test_a_worker_that_does_not_come_is_not_waited_for(event: Event) -> None:
    run = shrunk(hold=30.0)
    assert isinstance(run.state.mode, Running)
    run.feed(event)
    assert isinstance(run.state.mode, Pausing)
    gone = shrunk(THREE)
    assert isinstance(gone.state.mode, Pausing)  # `hold_s: 0` waits for nobody


def test_a_controller_that_comes_back_goes_by_the_shape_on_record() -> None:
    began = Shape(2, 2, 100, lambda step, workers: 2)
    assert began.reshaped(7, Mesh(), 2).cells == 4
    assert replace(began, most=3).reshaped(7, Mesh(), 2).cells == 3  # the job allows no more
    shape = began.reshaped(7, Mesh(fsdp=3), 1)
    assert (shape.cells, shape.wanted) == (1, 4)
    crew = ("a", "b", "c")
    past = Past(8, {0: crew}, {0: 5}, committed=9, shape=shape.told())
    living = {worker: Living("n", (0, rank), 5, 8, "inside", 9, 7, Mesh(fsdp=3)) for rank, worker in enumerate(crew)}
    state, events = rebuild(began, as_lived(began, past, living), living)
    assert (state.shape, list(state.live), events) == (shape, [0], [])
    former = Living("n", phase="spare", kept=((0, 9, 1), (0, 8, 0)))
    state, _ = rebuild(began, replace(past, changed=9), {**living, "d": former, "e": Living("n", (1, 0), 3, 7, "", 9)})
    assert [(one.shape, one.steps, one.held) for one in state.formers] == [(began, 9, {"d": 1, "e": 0})]
    assert rebuild(began, replace(past, changed=8), {**living, "d": former})[0].formers == ()
    behind = Past(6, {0: ("a", "b"), 1: ("c", "d")}, {0: 1, 1: 1}, committed=7)
    state, events = rebuild(began, as_lived(began, behind, living), living)
    assert (state.shape.mesh, state.shape.number, state.generation) == (Mesh(fsdp=3), 7, 8)
    assert [event.where for event in events if isinstance(event, Failed)] == ["between"] * 3


def test_the_shape_before_is_on_record_until_a_generation_begins_at_other_steps() -> None:
    shape = {"number": 3, "cells": 1, "pp": 1, "fsdp": 3, "ep": 1, "ep_node": 1}

    def line(number: int, step: int, shape: Any) -> dict[str, Any]:
        return {"kind": "generation", "generation": number, "step": step, "time": 0.0, "shape": shape}

    events = [line(0, 0, None), line(1, 5, None), line(3, 9, shape)]
    past = Past.read(events, 9, 0)
    assert (past.shape, past.former, past.changed) == (shape, None, 9)
    assert Past.read([*events, line(4, 9, shape)], 9, 0).changed == 9
    assert Past.read([*events, line(4, 7, shape)], 9, 0).changed == -1
    assert Past.read([*events, line(4, 9, None)], 9, 0).former == shape
    assert Past.read(events[:2], 9, 0).changed == -1


def test_what_a_run_has_seen_is_told_to_whoever_chooses() -> None:
    asked: list[Present] = []

    def choose(living: Any, present: Present, step: int) -> Choice | Stay:
        asked.append(present)
        return Stay("")

    run = shrunk(choose)
    run.feed(Changed(Took(1.0, 0.5)), Looked(20.0, ()))
    generation = run.state.generation
    run.feed(Committed("w00", generation, 6, 0.25, pace=(0.1, 0.2)), Joined("s0", "n9"))
    for worker in ("w10", "s0"):
        run.feed(Ready(worker, 1, run.state.cells[1].attempt, held=100))
    for worker in ("w00", "w01"):
        run.ack(worker, 6)
    seen = asked[-1].seen
    assert (seen.failures, seen.seconds, seen.step, seen.behind) == (1, 20.0, 0.25, 6)
    assert (seen.changes, seen.state_bytes) == ((Took(1.0, 0.5),), 200.0)
    assert seen.rounds == {run.state.shape.mesh: (0.2,)}
