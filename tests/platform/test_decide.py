"""The controller's decisions, stepped event by event, with no cluster."""

from __future__ import annotations

import math
from typing import Any

from shoal.decisions.actions import CommitLate, Decision, End, Form, Generation, Journal, Pause, Rewind, Stop
from shoal.decisions.bounds import FATAL, FRUITLESS, STRIKES
from shoal.decisions.decide import decide
from shoal.decisions.events import Joined, Lost, PassedOver
from shoal.decisions.figures import finite, not_finite
from shoal.decisions.modes import Running
from shoal.decisions.seating import spares
from shoal.ladder import Rung
from shoal.plan import Seat
from shoal.protocol.said import Ack, Acked, Checkpointed, Committed, Evaluated, Failed, Finished, NotSaved, Ready
from tests.support.decisions import HOMES, NODES, Run, deeds, one


def test_nothing_forms_before_the_planned_workers_of_a_cell_are_there() -> None:
    run = Run()
    assert run.feed(Joined("w00", "n1", Seat(0, 0))) == []
    form = one(run.feed(Joined("w01", "n1", Seat(0, 1))), Form)
    assert (form.cell, form.members, form.restore) == (0, ("w00", "w01"), 0)
    assert run.feed(Ready("w00", 0, 0), Ready("w01", 0, 0)) == []  # cell 1 is still awaited


def test_the_first_generation_heals_every_cell_from_the_first() -> None:
    generation = Run().start()
    assert generation.generation == 0
    assert generation.steps == 0
    assert generation.heals == ((0, 1),)
    assert generation.todo == {0: [0], 1: [1]}


def test_a_run_starts_with_the_cells_it_can_fill() -> None:
    run = Run()
    run.feed(Joined("w00", "n1", Seat(0, 0)), Joined("w01", "n1", Seat(0, 1)), Joined("w10", "n2", Seat(1, 0)))
    run.feed(Lost("w11", "it did not start"))
    generation = run.stand_up()
    assert list(generation.cells) == [0]
    assert generation.todo == {0: [0, 1]}


def test_a_lost_node_is_healed_on_spares_while_the_other_cell_goes_on() -> None:
    run = Run()
    run.start()
    run.spares()
    stop = one(run.feed(Lost("w10", "closed"), Lost("w11", "closed")), Stop)
    assert stop.broken == (1,)
    assert run.ack("w00", 7, (0,)) == []
    fresh = run.ack("w01", 7, (0,))
    generation, form = one(fresh, Generation), one(fresh, Form)
    assert list(generation.cells) == [0]
    assert generation.todo == {0: [1]}  # micro-batch 0 is done already
    assert generation.heals == ()
    assert (form.cell, form.attempt, form.members, form.restore) == (1, 1, ("s0", "s1"), None)
    # the cell stands: the others pause for it at a boundary, and it is copied from a cell that is whole
    assert one(run.feed(Ready("s0", 1, 1), Ready("s1", 1, 1)), Pause).workers == ("w00", "w01")
    run.ack("w00", 9)
    generation = one(run.ack("w01", 9), Generation)
    assert list(generation.cells) == [0, 1]
    assert generation.heals == ((0, 1),)
    assert generation.steps == 9


def test_survivors_of_a_broken_cell_keep_their_seats() -> None:
    run = Run()
    run.start()
    run.spares()
    run.feed(Lost("w10", "closed"))
    run.ack("w00", 7)
    run.ack("w01", 7)
    assert run.ack("w11", 7, out=False) == []  # it has not left the broken world yet
    form = one(run.ack("w11", 7, out=True), Form)
    assert form.members == ("s0", "w11")


def test_without_a_spare_the_run_shrinks_and_grows_again() -> None:
    run = Run()
    run.start()
    run.feed(Lost("w10", "closed"))
    run.ack("w00", 3)
    run.ack("w01", 3)
    fresh = run.ack("w11", 3, out=True)
    assert one(fresh, Decision).rung is Rung.SHRINK
    assert spares(run.state) == {"w11": "n2"}
    form = one(run.feed(Joined("s0", "n3")), Form)
    assert sorted(form.members) == ["s0", "w11"]


def test_whoever_committed_decides_for_everyone_alive() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w10", 0, 8), Lost("w10", "closed"))  # w10 left the vote of step 7 and died
    # whoever answers from behind is told at once: a peer of its cell may wait for it inside the next step
    assert one(run.ack("w00", 7, (0,)), CommitLate) == CommitLate(0, 8, ("w00",), Committed("w10", 0, 8))
    run.ack("w11", 7, out=True)
    assert one(run.ack("w01", 7, (0,)), CommitLate) == CommitLate(0, 8, ("w01",), Committed("w10", 0, 8))
    assert run.ack("w00", 8) == []
    generation = one(run.ack("w01", 8), Generation)
    assert generation.steps == 8
    assert generation.todo == {0: [0, 1]}


def test_a_laggard_is_raised_when_another_survivor_says_it_committed() -> None:
    run = Run()
    run.start()
    run.feed(Failed("w00", 0, "between", "connection reset"))
    run.ack("w00", 4)
    assert one(run.ack("w01", 5), CommitLate).workers == ("w00",)
    for worker in ("w10", "w11"):
        assert run.ack(worker, 5) == []
    assert one(run.ack("w00", 5), Generation).steps == 5


def test_a_failed_collective_without_a_death_is_retried() -> None:
    run = Run()
    run.start()
    run.feed(Failed("w00", 0, "between", "timed out"))
    for worker in ("w00", "w01", "w10"):
        run.ack(worker, 5, (int(worker[1]),))
    fresh = run.ack("w11", 5, (1,))
    assert one(fresh, Generation).todo == {0: [], 1: []}  # both have done their part already
    assert one(fresh, Decision).rung is Rung.RETRY


def test_the_death_of_a_second_cell_during_a_drain_is_waited_for() -> None:
    run = Run()
    run.start()
    run.spares()
    run.feed(Lost("w10", "closed"))
    run.ack("w00", 7)
    run.ack("w11", 7, out=True)
    stop = one(run.feed(Lost("w00", "closed")), Stop)  # the broken cells are told anew
    assert stop.broken == (0, 1)
    fresh = run.ack("w01", 7, out=True)
    assert one(fresh, Rewind) == Rewind(0, 7)  # nobody alive holds shard 0


def test_with_no_whole_cell_the_run_restores_the_last_checkpoint() -> None:
    run = Run()
    run.start()
    run.spares()
    run.feed(*(Committed(w, 0, 30) for w in HOMES.values()), Checkpointed(20))
    run.feed(Lost("w00", "closed"), Lost("w10", "closed"))
    run.ack("w01", 30, out=True)
    fresh = run.ack("w11", 30, out=True)
    assert one(fresh, Rewind) == Rewind(20, 10)
    assert [(a.cell, a.restore) for a in fresh if isinstance(a, Form)] == [(0, 20), (1, 20)]
    assert run.state.committed == 20
    generation = run.stand_up()
    assert (generation.steps, generation.heals) == (20, ((0, 1),))


def test_a_cell_that_dies_while_it_is_formed_is_formed_again() -> None:
    run = Run()
    run.start()
    run.spares()
    run.feed(Lost("w10", "closed"), Lost("w11", "closed"))
    run.ack("w00", 7)
    run.ack("w01", 7)
    assert deeds(run.feed(Lost("s1", "closed"))) == []
    form = one(run.feed(Joined("s2", "n4")), Form)
    assert (form.attempt, set(form.members)) == (2, {"s0", "s2"})
    assert run.feed(Ready("s0", 1, 1)) == []  # of the attempt before: it means nothing


def test_old_generations_have_no_say() -> None:
    run = Run()
    run.start()
    run.feed(Lost("w10", "closed"), Lost("w11", "closed"))
    run.ack("w00", 7)
    run.ack("w01", 7)
    before = run.state
    run.feed(Committed("w00", 0, 50), Failed("w00", 0, "cell", "late"), Acked("w00", 0, Ack(50)))
    assert run.state.committed == before.committed == 7
    assert isinstance(run.state.mode, Running)


def test_the_end_needs_every_worker() -> None:
    run = Run(steps=5)
    run.start()
    assert run.feed(*(Finished(w, 0) for w in ("w00", "w01", "w10"))) == []
    assert one(run.feed(Finished("w11", 0)), End) == End("done", "every step is committed")


def test_an_error_of_the_training_code_ends_the_run() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w10", 0, 7))
    assert one(run.feed(Failed("w00", 0, "code", "ValueError: bad")), Stop).broken == (0,)
    run.ack("w00", 7, out=True)
    run.ack("w01", 7, out=True)
    run.ack("w10", 7)
    saved = one(run.ack("w11", 7), Generation)
    assert (dict(saved.cells), saved.steps, saved.save, saved.halt) == ({1: ("w10", "w11")}, 7, True, True)
    assert run.feed(Joined("w12", "n9")) == []  # nothing is begun any more
    end = one(run.feed(Checkpointed(7)), End)
    assert end.status == "failed"
    assert "ValueError" in end.reason
    assert "saved up to step 7 of 7" in end.reason


def test_an_error_everywhere_is_saved_from_what_the_workers_hold() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w10", 0, 7))
    run.feed(*(Failed(worker, 0, "code", "ValueError: bad") for worker in HOMES.values()))
    for worker in list(HOMES.values())[:-1]:
        assert run.ack(worker, 7, out=True) == []
    form = one(run.ack("w11", 7, out=True), Form)
    assert form.keep
    saved = one(run.feed(*(Ready(m, 0, form.attempt) for m in form.members)), Generation)
    assert (saved.steps, saved.save, saved.halt) == (7, True, True)
    end = one(run.feed(Lost(form.members[0], "closed")), End)  # a second fault ends it at once
    assert "saved up to step 0 of 7" in end.reason


def test_an_error_in_the_midst_of_a_commit_everywhere_leaves_the_checkpoint() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w10", 0, 7), Checkpointed(5))
    run.feed(*(Failed(worker, 0, "code", "ValueError: bad") for worker in HOMES.values()))
    for worker in HOMES.values():
        run.feed(Acked(worker, 0, Ack(-1, out=True)))
    assert "saved up to step 5 of 7" in one(run.actions, End).reason


def test_a_run_does_not_heal_in_circles() -> None:
    run = Run()
    run.start()
    for _ in range(FRUITLESS + 1):
        run.feed(Failed("w00", run.state.generation, "between", "reset"))
        for worker in HOMES.values():
            run.ack(worker, 0)
    for worker in HOMES.values():
        run.ack(worker, 0)
    assert one(run.actions, End).status == "failed"


def test_a_node_that_keeps_losing_workers_is_set_aside() -> None:
    run = Run(steps=1000)
    run.start()
    for strike in range(STRIKES):
        run.feed(Joined(f"x{strike}", "n9"), Committed("w00", run.state.generation, 10 * strike + 5))
        run.feed(Lost(f"x{strike}", "closed"))
    assert one(run.actions, Journal).kind == "node_aside"
    run.feed(Joined("y", "n9"))
    assert spares(run.state) == {}


def test_a_step_that_kills_whoever_takes_it_ends_the_run() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w00", 0, 12))
    for times in range(FATAL):
        run.feed(*(Joined(f"s{times}{i}", f"n{times}{i}") for i in range(2)))
        run.stand_up_and_join()
        run.feed(Lost(str(run.state.cells[1].members[0]), "closed"))
        for worker in run.state.crew():
            cell = run.state.seats[worker].cell
            run.ack(worker, 12, out=cell == 1)
    saved = run.actions[-1]
    assert isinstance(saved, Generation)
    assert (saved.steps, saved.halt) == (12, True)
    end = one(run.feed(Checkpointed(12)), End)
    assert end.status == "failed"
    assert "step 12" in end.reason


def test_an_answer_out_of_nowhere_means_that_a_former_controller_stopped_somebody() -> None:
    run = Run()
    run.start()
    fresh = run.ack("w00", 5)
    assert one(fresh, Stop).broken == ()
    for worker in ("w01", "w10"):
        run.ack(worker, 5)
    assert one(run.ack("w11", 5), Generation).steps == 5


def test_the_state_before_is_not_touched() -> None:
    run = Run()
    run.start()
    before = run.state
    copy = before.copy()
    decide(before, Lost("w10", "closed"))
    assert before == copy


def test_a_run_is_not_done_without_its_last_state() -> None:
    run = Run(steps=5)
    run.start()
    run.feed(*(Committed(w, 0, 5) for w in HOMES.values()), NotSaved(5, "disk full", "w00"))
    end = one(run.feed(*(Finished(w, 0) for w in HOMES.values())), End)
    assert end.status == "failed"
    assert "last state could not be saved (disk full)" in end.reason


def test_trouble_with_saving_is_told_once_until_a_checkpoint_is_whole() -> None:
    run = Run()
    run.start()

    def told(*said: NotSaved | Checkpointed) -> list[int]:
        lines = [action for action in run.feed(*said) if isinstance(action, Journal)]
        return [line.fields["step"] for line in lines if line.kind == "checkpoint_failed"]

    assert told(*(NotSaved(step, f"no room at step {step}", "w00", "free some space") for step in (5, 6, 8))) == [5]
    assert told(NotSaved(12, "not allowed", "w00", "use other credentials")) == [12]
    assert told(Checkpointed(16), NotSaved(20, "not allowed", "w00", "use other credentials")) == [20]


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one_once() -> None:
    run = Run(checkpoint=40)
    for seat, worker in HOMES.items():
        run.feed(Joined(worker, NODES[worker], seat))
    forms = [action for action in run.actions if isinstance(action, Form)]
    assert {form.restore for form in forms} == {40}
    fresh = run.feed(PassedOver(40, 20, "a bit"), Failed("w00", -1, "form", "a bit", 0), PassedOver(40, 20, "a bit"))
    assert one(fresh, Rewind) == Rewind(20, 20)
    assert {form.restore for form in fresh if isinstance(form, Form)} == {20}
    end = one(run.feed(PassedOver(20, None, "a bit")), End)
    assert (end.status, "no older checkpoint is left" in end.reason) == ("failed", True)


def test_an_evaluation_of_nothing_is_not_told() -> None:
    run = Run()
    generation = run.start().generation
    assert run.feed(Evaluated("w00", generation, 3, {})) == []
    assert run.state.evaluated == 3
    told = run.feed(Evaluated("w00", generation, 4, {"bpb": 2.0, "step": 9.0}))
    assert told == [Journal("evaluation", {"step": 4, "bpb": 2.0})]


def test_a_step_that_is_no_number_is_counted_in_a_row() -> None:
    fine, bad = {"loss": 1.0, "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": math.inf}
    null: dict[str, Any] = {"loss": None}
    assert [finite(figures) for figures in (fine, bad, null, {})] == [True, False, False, True]
    assert [not_finite(steps) for steps in ([], [bad], [bad, fine], [fine, null, bad])] == [0, 1, 0, 2]
