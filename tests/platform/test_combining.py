"""Cells that are put together of what broken ones hold: the decisions, with no cluster."""

from __future__ import annotations

from shoal.decisions.actions import CommitLate, Decision, Form, Generation, Rewind
from shoal.decisions.events import Lost
from shoal.ladder import Rung
from shoal.protocol.said import Checkpointed, Committed, Failed, Ready
from tests.support.decisions import Run, one


def broken_apart() -> Run:
    """Shard 0 lives in cell 0 alone, shard 1 in cell 1 alone."""
    run = Run()
    run.start()
    run.spares()
    run.feed(Committed("w00", 0, 30), Checkpointed(20))
    run.feed(Lost("w10", "closed"), Lost("w01", "closed"))
    return run


def test_cells_that_together_hold_every_shard_are_put_together() -> None:
    run = broken_apart()
    run.ack("w00", 30, out=True)
    fresh = run.ack("w11", 30, out=True)
    assert one(fresh, Decision).rung is Rung.COMBINE
    form = one(fresh, Form)
    assert (form.members, form.keep, form.restore) == (("w00", "w11"), True, None)
    fresh = run.feed(Ready("w00", 0, form.attempt), Ready("w11", 0, form.attempt))
    generation = one(fresh, Generation)
    assert (dict(generation.cells), generation.steps, generation.heals) == ({0: ("w00", "w11")}, 30, ())
    assert set(one(fresh, Form).members) == {"s0", "s1"}  # and the other cell is formed beside it


def test_who_can_still_commit_is_raised_before_cells_are_put_together() -> None:
    run = broken_apart()
    assert one(run.ack("w00", 29, whole=True), CommitLate).workers == ("w00",)
    assert run.ack("w11", 30, out=True) == []
    assert one(run.ack("w00", 30, out=True), Form).keep


def test_a_holder_that_dies_while_cells_are_put_together_means_restoring() -> None:
    run = broken_apart()
    run.ack("w00", 30, out=True)
    run.ack("w11", 30, out=True)
    fresh = run.feed(Lost("w11", "closed"))
    assert one(fresh, Rewind) == Rewind(20, 10)
    assert {(a.restore, a.keep) for a in fresh if isinstance(a, Form)} == {(20, False)}


def test_a_cell_that_failed_to_come_together_is_tried_again() -> None:
    run = broken_apart()
    run.ack("w00", 30, out=True)
    first = one(run.ack("w11", 30, out=True), Form)
    second = one(run.feed(Failed("w00", 0, "form", "reset", first.attempt)), Form)
    assert (second.members, second.keep, second.attempt > first.attempt) == (first.members, True, True)


def one_cell_left() -> Run:
    """Cell 1 broke, and cell 0 goes on; no step is committed since."""
    run = Run()
    run.start()
    run.feed(Committed("w00", 0, 30), Checkpointed(20), Lost("w11", "closed"))
    run.ack("w00", 30)
    run.ack("w01", 30)
    run.ack("w10", 30, out=True)
    return run


def test_who_is_in_no_cell_any_more_still_has_its_shard_until_the_next_commit() -> None:
    run = one_cell_left()
    run.feed(Lost("w00", "closed"))
    form = one(run.ack("w01", 30, out=True), Form)
    assert (form.members, form.keep, form.restore) == (("w10", "w01"), True, None)


def test_and_not_after_it() -> None:
    run = one_cell_left()
    run.feed(Committed("w00", 1, 31), Lost("w00", "closed"))
    assert one(run.ack("w01", 31, out=True), Rewind) == Rewind(20, 11)


def test_who_got_no_seat_when_a_cell_was_put_together_still_has_its_shard() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w00", 0, 30), Checkpointed(20), Lost("w11", "closed"))
    for worker in ("w00", "w01"):  # theirs is not broken, but they have left it
        run.ack(worker, 30, out=True)
    form = one(run.ack("w10", 30, out=True), Form)
    first, second = form.members
    assert form.keep
    assert second == "w01"
    run.feed(*(Ready(member, 0, form.attempt) for member in form.members))
    run.feed(Lost(first, "closed"))
    (other,) = {"w00", "w10"} - {first}
    again = one(run.ack(second, 30, out=True), Form)
    assert (again.members, again.keep, again.restore) == ((other, second), True, None)
