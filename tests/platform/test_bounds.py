"""Runs that get nowhere: what is tried again, how often, and with which reason they end. No cluster."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.decisions.actions import End, Form, Generation, Journal, Pause, Release, Stop
from shoal.decisions.bounds import FRUITLESS, SPENT, UNBORN
from shoal.decisions.events import Ending, Joined, Lost, Unborn, Wanted
from shoal.decisions.modes import Running
from shoal.plan import Seat
from shoal.protocol.said import Ack, Acked, Checkpointed, Committed, CopyHeld, Failed, NotSaved, Ready
from tests.support.decisions import HOMES, Run, deeds, one

WHY = "RuntimeError: no accelerator here"


def journaled(actions: list[Any], kind: str) -> list[Any]:
    return [action.fields for action in actions if isinstance(action, Journal) and action.kind == kind]


def answer_all(run: Run, steps: int) -> list[Any]:
    return [action for worker in sorted(run.state.awaited) for action in run.ack(worker, steps)]


# ---- before the first word


def test_where_no_worker_can_start_the_run_ends_with_the_cause() -> None:
    run = Run()
    for worker in list(HOMES.values())[:-1]:
        assert deeds(run.feed(Unborn(worker, f"n{worker}", WHY))) == [
            Release((worker,))
        ]  # who is still expected may be able to
    end = one(run.feed(Unborn("w11", "nw11", WHY)), End)
    assert end.status == "failed"
    assert WHY in end.reason
    assert "the last of 4, on nw00, nw01, nw10, nw11" in end.reason


def test_a_few_tries_are_made_and_a_worker_that_starts_ends_the_count() -> None:
    run = Run()
    run.feed(*(Lost(worker, "late") for worker in HOMES.values()))
    for number in range(UNBORN - 1):
        assert journaled(run.feed(Unborn(f"s{number}", "n1", WHY)), "node_aside") == []
    run.feed(Joined("s8", "n1"), Lost("s8", "closed"))
    for number in range(UNBORN - 1):
        assert deeds(run.feed(Unborn(f"t{number}", "n1", WHY))) == [Release((f"t{number}",))]
    assert WHY in one(run.feed(Unborn("t9", "n1", WHY)), End).reason


def test_a_node_where_no_worker_can_start_is_set_aside_while_others_train() -> None:
    run = Run()
    run.start()
    for number in range(UNBORN):
        fresh = run.feed(Unborn(f"s{number}", "n9", WHY))
    (aside,) = journaled(fresh, "node_aside")
    assert aside["node"] == "n9"
    assert WHY in aside["reason"]
    assert isinstance(run.state.mode, Running)
    assert journaled(run.feed(Unborn("s9", "n9", WHY)), "node_aside") == []  # told once


def test_workers_are_not_spent_without_end() -> None:
    """Whoever joins dies while its cell is formed: never a generation, never a step."""
    run = Run()
    run.feed(*(Joined(worker, "n1", seat) for seat, worker in HOMES.items()))
    tries = 0
    while not any(isinstance(action, End) for action in run.actions):
        tries += 1
        victim = run.state.cells[0].people()[0]
        run.feed(Lost(victim, "killed by the kernel"), Joined(f"s{tries}", f"n{tries}"))
        assert tries <= SPENT + 2 * len(HOMES) + 1
    end = one(run.actions, End)
    assert f"{SPENT + 2 * len(HOMES) + 1} workers died without a committed step" in end.reason
    assert "killed by the kernel" in end.reason


def test_a_committed_step_gives_new_credit() -> None:
    run = Run()
    run.start()
    for number in range(SPENT + 2 * len(HOMES)):
        run.feed(Joined(f"s{number}", f"n{number}"), Lost(f"s{number}", "closed"))
    run.feed(Committed("w00", 0, 1), Joined("x", "nx"), Lost("x", "closed"))
    assert isinstance(run.state.mode, Running)
    assert run.state.halt is None


# ---- formations


def test_a_formation_that_fails_says_why_and_its_end_says_it_again() -> None:
    run = Run()
    run.feed(*(Joined(worker, "n1", seat) for seat, worker in HOMES.items()))
    fresh = run.feed(Failed("w00", -1, "form", "RuntimeError: connection refused", 0))
    (failed,) = journaled(fresh, "formation_failed")
    assert failed == {"cell": 0, "attempt": 0, "actor": "w00", "reason": "RuntimeError: connection refused"}
    for _ in range(FRUITLESS):
        assert one(fresh, Form).cell == 0
        fresh = run.feed(Failed("w00", -1, "form", "RuntimeError: connection refused", run.state.cells[0].attempt))
    assert "connection refused" in one(fresh, End).reason


# ---- standing still


def test_what_stands_still_is_formed_again_once_and_then_saved_and_ended() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w00", 0, 7))
    assert one(run.stand_still(), Stop).broken == ()
    again = one(answer_all(run, 7), Generation)
    assert (again.steps, again.halt) == (7, False)
    assert one(run.stand_still(), Stop).broken == ()
    saved = one(answer_all(run, 7), Generation)
    assert (saved.steps, saved.save, saved.halt) == (7, True, True)
    end = one(run.feed(Checkpointed(7)), End)
    assert end.status == "failed"
    assert "all workers were across for 10000 s, 2 times" in end.reason


def test_a_step_between_two_standstills_makes_the_second_the_first() -> None:
    run = Run()
    run.start()
    run.stand_still()
    generation = one(answer_all(run, 0), Generation)
    run.feed(Committed("w00", generation.generation, 1))
    run.stand_still()
    assert one(answer_all(run, 1), Generation).halt is False


def test_steps_that_are_done_again_are_no_news() -> None:
    """Each time at the same step: all workers hang, are fenced, and the run goes back to where it began."""
    run = Run()
    run.start()
    for step in range(1, 21):
        run.feed(Committed("w00", 0, step))
    run.stand_still()
    run.feed(*(Lost(worker, "did not answer") for worker in HOMES.values()))
    run.feed(*(Joined(f"s{number}", f"n{number}") for number in range(4)))
    generation = run.stand_up()
    assert generation.steps == 0
    run.feed(Committed(generation.cells[0][0], generation.generation, 20))
    run.stand_still()
    fresh = run.feed(*(Lost(f"s{number}", "did not answer") for number in range(4)))
    assert "for 10000 s, 2 times without a new step between them" in one(fresh, End).reason


def test_a_pause_that_nobody_comes_out_of_is_cut_short() -> None:
    run = Run()
    run.start()
    run.spares()
    run.feed(Lost("w10", "closed"), Lost("w11", "closed"))
    answer_all(run, 3)
    cell = run.state.cells[1]
    one(run.feed(*(Ready(member, 1, cell.attempt) for member in cell.people())), Pause)
    assert set(one(run.stand_still(), Stop).workers) == {"w00", "w01"}


def test_cells_that_are_never_formed_are_formed_again_and_then_the_run_ends() -> None:
    run = Run()
    run.feed(*(Joined(worker, "n1", seat) for seat, worker in HOMES.items()))
    fresh = run.stand_still()
    assert [(form.cell, form.attempt) for form in fresh if isinstance(form, Form)] == [(0, 1), (1, 1)]
    assert run.feed(Ready("w00", 0, 0), Ready("w01", 0, 0)) == []  # of the attempt before
    assert "no cell was formed: all workers were across for 10000 s" in one(run.stand_still(), End).reason


def test_a_state_that_cannot_be_saved_ends_all_the_same() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w00", 0, 7), Ending("enough"))
    answer_all(run, 7)
    end = one(run.stand_still(), End)
    assert (
        "enough; its state could not be saved (step 7 was not committed: all workers were across for 10000 s)"
        in end.reason
    )


# ---- an end for the controller's own reasons


@pytest.mark.parametrize(("status", "told"), [("failed", Stop), ("stopped", Pause)])
def test_an_end_in_order_saves_first(status: Any, told: type[Stop] | type[Pause]) -> None:
    """What is only told to stop ends at the next boundary: nobody owes an answer in the middle of a step."""
    run = Run()
    run.start()
    run.feed(Committed("w00", 0, 7))
    one(run.feed(Ending("rolled back more than 3 times", status)), told)
    assert run.feed(Ending("another reason")) == []
    saved = one(answer_all(run, 7), Generation)
    assert (saved.save, saved.halt) == (True, True)
    end = one(run.feed(Checkpointed(7)), End)
    assert end.status == status
    assert end.reason.startswith("rolled back more than 3 times; its state is saved up to step 7")


def test_an_end_before_anything_stands_is_at_once() -> None:
    run = Run()
    assert one(run.feed(Ending("stopped by somebody", "stopped")), End).status == "stopped"


def test_a_last_checkpoint_that_fails_ends_the_run_and_an_older_one_does_not() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w00", 0, 7), Ending("enough"))
    answer_all(run, 7)
    assert deeds(run.feed(NotSaved(5, "its cell broke", "w00"))) == []
    end = one(run.feed(NotSaved(7, "No space left", "w00")), End)
    assert "enough; its state could not be saved (No space left); its state is saved up to step 0 of 7" in end.reason


def test_what_the_rest_of_a_broken_cell_could_not_save_does_not_end_the_run() -> None:
    """Seen on a busy machine: a cell was writing the last checkpoint when one of its workers was fenced."""
    run = Run()
    run.start()
    run.feed(Committed("w00", 0, 7), Ending("enough"), Lost("w10", "did not answer a stop"))
    answers = [*run.ack("w11", 7, out=True), *run.ack("w00", 7), *run.ack("w01", 7)]
    saved = one(answers, Generation)
    assert (list(saved.cells), saved.save) == ([0], True)
    assert run.feed(NotSaved(7, "its group is gone", "w11")) == []
    assert "its state is saved up to step 7" in one(run.feed(Checkpointed(7)), End).reason


def test_an_end_while_a_cell_is_put_together_waits_for_it() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w00", 0, 30), Lost("w10", "closed"), Lost("w01", "closed"))
    run.ack("w00", 30, out=True)
    form = one(run.ack("w11", 30, out=True), Form)
    assert form.keep
    assert run.feed(Ending("enough")) == []
    saved = one(run.feed(*(Ready(member, 0, form.attempt) for member in form.members)), Generation)
    assert (saved.steps, saved.save, saved.halt) == (30, True, True)
    assert run.feed(Acked("w00", 0, Ack(30))) == []


def test_idle_spares_are_given_up_to_a_run_that_needs_seats_and_nobody_else_is() -> None:
    run = Run()
    run.start()
    run.spares()
    run.feed(Joined("s2", "n3"), CopyHeld("s0", 0, 0, 0))
    assert one(run.feed(Wanted(2)), Release).workers == ("s1", "s2")  # not the one that keeps a copy
    assert one(run.feed(Wanted(2)), Release).workers == ("s0",)
    assert run.feed(Wanted(2)) == []
    assert run.state.crew() == list(HOMES.values())


def test_seats_are_named_for_nobody() -> None:
    """A worker that dies unborn frees the seat it was asked for: the cell is filled from spares."""
    run = Run()
    run.feed(Joined("w00", "n1", Seat(0, 0)), Joined("s0", "n3"))
    assert one(run.feed(Unborn("w01", "n2", WHY)), Form).members == ("w00", "s0")
