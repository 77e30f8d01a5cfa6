"""Cells that leave nodes which will be taken away, decided event by event."""

from __future__ import annotations

import pytest

from shoal.decisions.actions import Decision, Form, Generation, Pause, Release, Stop
from shoal.decisions.events import Joined, Lost, Preemption
from shoal.decisions.modes import Pausing, Running
from shoal.decisions.seating import spares
from shoal.ladder import Rung
from shoal.plan import Seat
from shoal.protocol.said import Committed, Failed, Ready
from tests.support.decisions import HOMES, Run, one


def moving() -> Run:
    """A run whose second cell has a successor on spares, forming."""
    run = Run()
    run.start()
    run.spares()
    run.feed(Committed("w00", 0, 7))
    form = one(run.feed(Preemption("n2")), Form)
    assert (form.cell, form.attempt, form.members, form.restore) == (1, 1, ("s0", "s1"), None)
    assert isinstance(run.state.mode, Running)
    return run


def test_a_draining_node_is_left_when_the_cells_successor_stands() -> None:
    run = moving()
    assert run.feed(Preemption("n2")) == []  # said every second
    assert run.feed(Ready("s0", 1, 1)) == []
    pause = one(run.feed(Ready("s1", 1, 1)), Pause)
    assert set(pause.workers) == set(HOMES.values())
    for worker in ("w00", "w01", "w10"):
        assert run.ack(worker, 8) == []
    fresh = run.ack("w11", 8)
    generation = one(fresh, Generation)
    assert generation.cells == {0: ("w00", "w01"), 1: ("s0", "s1")}
    assert (generation.heals, generation.attempts[1]) == (((0, 1),), 1)
    assert generation.todo == {0: [0], 1: [1]}
    assert set(one(fresh, Release).workers) == {"w10", "w11"}
    assert one(fresh, Decision).rung is Rung.DRAIN
    assert run.feed(Preemption("n2")) == []


def test_spares_of_a_draining_node_are_let_go() -> None:
    run = Run()
    run.start()
    run.feed(Joined("x0", "n2"))
    assert one(run.feed(Preemption("n2")), Release).workers == ("x0",)


def test_with_too_few_spares_the_cell_leaves_first_and_grows_back_later() -> None:
    run = Run()
    run.start()
    run.feed(Joined("s0", "n3"))
    assert one(run.feed(Preemption("n2")), Pause).workers == ("w00", "w01", "w10", "w11")
    for worker in ("w00", "w01", "w10"):
        run.ack(worker, 7)
    fresh = run.ack("w11", 7)
    assert list(one(fresh, Generation).cells) == [0]
    assert set(one(fresh, Release).workers) == {"w10", "w11"}
    assert one(run.feed(Joined("s1", "n3")), Form).members == ("s0", "s1")


@pytest.mark.parametrize("how", ["dies", "cannot come together"])
def test_a_successor_that_fails_is_formed_again_or_the_cell_leaves_without(how: str) -> None:
    run = moving()
    if how == "dies":
        assert one(run.feed(Lost("s0", "closed")), Pause).workers == tuple(HOMES.values())
        assert spares(run.state) == {"s1": "n3"}
    else:
        again = one(run.feed(Failed("s0", -1, "form", "reset", 1)), Form)
        assert (again.cell, again.attempt, again.members) == (1, 2, ("s0", "s1"))
        assert run.feed(Failed("s1", -1, "form", "reset", 1)) == []  # of the attempt before
        assert run.feed(Ready("s0", 1, 1), Ready("s1", 1, 1)) == []


@pytest.mark.parametrize("stands", [False, True])
def test_the_successor_of_a_cell_that_breaks_takes_over_as_far_as_it_is(stands: bool) -> None:
    run = moving()
    if stands:
        run.feed(Ready("s0", 1, 1), Ready("s1", 1, 1))
    assert one(run.feed(Lost("w10", "closed")), Stop).broken == (1,)
    run.ack("w11", 7, out=True)
    run.ack("w00", 7, (0,))
    fresh = run.ack("w01", 7, (0,))
    generation = one(fresh, Generation)
    assert list(generation.cells) == ([0, 1] if stands else [0])
    assert generation.todo == ({0: [], 1: [1]} if stands else {0: [1]})
    assert [a for a in fresh if isinstance(a, Form)] == []
    if not stands:
        assert one(run.feed(Ready("s0", 1, 1), Ready("s1", 1, 1)), Pause).workers == ("w00", "w01")


def test_a_cell_that_moves_does_not_take_the_last_copy_along() -> None:
    run = moving()
    run.feed(Ready("s0", 1, 1), Ready("s1", 1, 1))
    run.feed(Lost("w00", "closed"), Lost("w01", "closed"))
    run.ack("w10", 7)
    generation = one(run.ack("w11", 7), Generation)
    assert (generation.cells, generation.save) == ({1: ("w10", "w11")}, True)


def test_a_death_during_a_pause_is_handled_at_once() -> None:
    run = Run()
    run.start()
    run.feed(Preemption("n2"))
    assert isinstance(run.state.mode, Pausing)
    assert one(run.feed(Lost("w00", "closed")), Stop).broken == (0,)
    run.ack("w01", 3, out=True)
    run.ack("w10", 3)
    fresh = run.ack("w11", 3)
    assert list(one(fresh, Generation).cells) == [1]  # the last copy stays on its node for now
    assert one(fresh, Generation).save


def test_the_last_cell_saves_its_state_when_its_node_goes() -> None:
    run = Run()
    for worker, seat in (("w00", Seat(0, 0)), ("w01", Seat(0, 1))):
        run.feed(Joined(worker, "n1", seat))
    run.feed(Lost("w10", "late"), Lost("w11", "late"))
    run.stand_up()
    assert one(run.feed(Preemption("n1")), Pause).workers == ("w00", "w01")
    run.ack("w00", 0)
    generation = one(run.ack("w01", 0), Generation)
    assert (generation.save, list(generation.cells)) == (True, [0])
