"""The controller's decisions, stepped event by event, with no cluster."""

from __future__ import annotations

from typing import TypeVar

import pytest

from shoal.control.decide import FATAL, FRUITLESS, STRIKES, decide
from shoal.control.messages import (
    Acked,
    Action,
    Checkpointed,
    Committed,
    Draining,
    End,
    Event,
    Failed,
    Finished,
    Form,
    Generation,
    Joined,
    Journal,
    Lost,
    Pause,
    Raise,
    Ready,
    Release,
    Rewind,
    Stop,
)
from shoal.control.state import Ack, Shape, State
from shoal.plan import Seat

HOMES = {Seat(c, r): f"w{c}{r}" for c in range(2) for r in range(2)}
NODES = {"w00": "n1", "w01": "n1", "w10": "n2", "w11": "n2", "s0": "n3", "s1": "n3"}


class Run:
    """Feeds events and keeps what was answered."""

    def __init__(self, checkpoint: int = 0, steps: int = 100) -> None:
        self.state = State.new(Shape(2, 2, steps, lambda step: 2), HOMES, checkpoint)
        self.actions: list[Action] = []

    def feed(self, *events: Event) -> list[Action]:
        fresh: list[Action] = []
        for event in events:
            self.state, actions = decide(self.state, event)
            fresh += actions
        self.actions += fresh
        return fresh

    def start(self) -> Generation:
        for seat, worker in HOMES.items():
            self.feed(Joined(worker, NODES[worker], seat))
        return self.stand_up()

    def stand_up(self) -> Generation:
        """Let every forming cell's members report ready."""
        fresh: list[Action] = []
        for index, cell in enumerate(self.state.cells):
            if cell.phase == "forming":
                fresh += self.feed(*(Ready(m, index, cell.attempt) for m in cell.people()))
        return one(fresh, Generation)

    def stand_up_and_join(self) -> None:
        """Let a forming cell stand, and everybody stop for it; `w00` has committed nothing new."""
        for index, cell in enumerate(self.state.cells):
            if cell.phase == "forming":
                self.feed(*(Ready(m, index, cell.attempt) for m in cell.people()))
        while self.state.mode == "draining":
            for worker in sorted(self.state.awaited):
                self.ack(worker, 12)

    def spares(self) -> None:
        self.feed(Joined("s0", "n3"), Joined("s1", "n3"))

    def ack(
        self, worker: str, steps: int, done: tuple[int, ...] = (), *, out: bool = False, whole: bool = False
    ) -> list[Action]:
        seat = self.state.seat(worker)
        rank = -1 if seat is None else seat.rank
        return self.feed(Acked(worker, self.state.generation, Ack(steps, done=done, out=out, whole=whole, rank=rank)))


A = TypeVar("A")


def one(actions: list[Action], kind: type[A]) -> A:
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]


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
    assert one(fresh, Journal).fields["rung"] == "shrink"
    assert run.state.spares() == {"w11": "n2"}
    form = one(run.feed(Joined("s0", "n3")), Form)
    assert sorted(form.members) == ["s0", "w11"]


def test_whoever_committed_decides_for_everyone_alive() -> None:
    run = Run()
    run.start()
    run.feed(Committed("w10", 0, 8), Lost("w10", "closed"))  # w10 left the vote of step 7 and died
    # whoever answers from behind is told at once: a peer of its cell may wait for it inside the next step
    assert one(run.ack("w00", 7, (0,)), Raise) == Raise(0, 8, ("w00",))
    run.ack("w11", 7, out=True)
    assert one(run.ack("w01", 7, (0,)), Raise) == Raise(0, 8, ("w01",))
    assert run.ack("w00", 8) == []
    generation = one(run.ack("w01", 8), Generation)
    assert generation.steps == 8
    assert generation.todo == {0: [0, 1]}


def test_a_laggard_is_raised_when_another_survivor_says_it_committed() -> None:
    run = Run()
    run.start()
    run.feed(Failed("w00", 0, "between", "connection reset"))
    run.ack("w00", 4)
    assert one(run.ack("w01", 5), Raise).workers == ("w00",)
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
    assert one(fresh, Journal).fields["rung"] == "retry"


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
    assert run.feed(Lost("s1", "closed")) == []
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
    assert run.state.mode == "running"


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
    assert one(fresh, Journal).fields["rung"] == "combine"
    form = one(fresh, Form)
    assert (form.members, form.keep, form.restore) == (("w00", "w11"), True, None)
    fresh = run.feed(Ready("w00", 0, form.attempt), Ready("w11", 0, form.attempt))
    generation = one(fresh, Generation)
    assert (dict(generation.cells), generation.steps, generation.heals) == ({0: ("w00", "w11")}, 30, ())
    assert set(one(fresh, Form).members) == {"s0", "s1"}  # and the other cell is formed beside it


def test_who_can_still_commit_is_raised_before_cells_are_put_together() -> None:
    run = broken_apart()
    assert one(run.ack("w00", 29, whole=True), Raise).workers == ("w00",)
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


def moving() -> Run:
    """A run whose second cell has a successor on spares, forming."""
    run = Run()
    run.start()
    run.spares()
    run.feed(Committed("w00", 0, 7))
    form = one(run.feed(Draining("n2")), Form)
    assert (form.cell, form.attempt, form.members, form.restore) == (1, 1, ("s0", "s1"), None)
    assert run.state.mode == "running"
    return run


def test_a_draining_node_is_left_when_the_cells_successor_stands() -> None:
    run = moving()
    assert run.feed(Draining("n2")) == []  # said every second
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
    assert one(fresh, Journal).fields["rung"] == "drain"
    assert run.feed(Draining("n2")) == []


def test_spares_of_a_draining_node_are_let_go() -> None:
    run = Run()
    run.start()
    run.feed(Joined("x0", "n2"))
    assert one(run.feed(Draining("n2")), Release).workers == ("x0",)


def test_with_too_few_spares_the_cell_leaves_first_and_grows_back_later() -> None:
    run = Run()
    run.start()
    run.feed(Joined("s0", "n3"))
    assert one(run.feed(Draining("n2")), Pause).workers == ("w00", "w01", "w10", "w11")
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
        assert run.state.spares() == {"s1": "n3"}
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
    run.feed(Draining("n2"))
    assert run.state.pausing
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
    assert one(run.feed(Draining("n1")), Pause).workers == ("w00", "w01")
    run.ack("w00", 0)
    generation = one(run.ack("w01", 0), Generation)
    assert (generation.save, list(generation.cells)) == (True, [0])


def test_a_node_that_keeps_losing_workers_is_set_aside() -> None:
    run = Run(steps=1000)
    run.start()
    for strike in range(STRIKES):
        run.feed(Joined(f"x{strike}", "n9"), Committed("w00", run.state.generation, 10 * strike + 5))
        run.feed(Lost(f"x{strike}", "closed"))
    assert one(run.actions, Journal).kind == "node_aside"
    run.feed(Joined("y", "n9"))
    assert run.state.spares() == {}


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
