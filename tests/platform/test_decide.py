"""The controller's decisions, stepped event by event, with no cluster."""

from __future__ import annotations

from typing import TypeVar

from shoal.control.decide import FRUITLESS, decide
from shoal.control.messages import (
    Acked,
    Action,
    Checkpointed,
    Committed,
    End,
    Event,
    Failed,
    Finished,
    Form,
    Generation,
    Joined,
    Journal,
    Lost,
    Raise,
    Ready,
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

    def spares(self) -> None:
        self.feed(Joined("s0", "n3"), Joined("s1", "n3"))

    def ack(self, worker: str, steps: int, done: tuple[int, ...] = (), out: bool = False) -> list[Action]:
        return self.feed(Acked(worker, self.state.generation, Ack(steps, done=done, out=out)))


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
    # the cell stands: the others stop for it at a boundary, and it is copied from a cell that is whole
    stop = one(run.feed(Ready("s0", 1, 1), Ready("s1", 1, 1)), Stop)
    assert stop.broken == ()
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
    run.ack("w00", 7, (0,))
    run.ack("w11", 7, out=True)
    laggards = one(run.ack("w01", 7, (0,)), Raise)
    assert laggards.steps == 8
    assert set(laggards.workers) == {"w00", "w01"}
    run.ack("w00", 8)
    generation = one(run.ack("w01", 8), Generation)
    assert generation.steps == 8
    assert generation.todo == {0: [0, 1]}


def test_a_laggard_is_raised_when_another_survivor_says_it_committed() -> None:
    run = Run()
    run.start()
    run.feed(Failed("w00", 0, "between", "connection reset"))
    for worker, steps in (("w00", 4), ("w01", 5), ("w10", 5)):
        run.ack(worker, steps)
    laggards = one(run.ack("w11", 5), Raise)
    assert laggards.workers == ("w00",)
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
    assert one(fresh, Rewind) == Rewind(0, 7)


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
    end = one(run.feed(Failed("w00", 0, "code", "ValueError: bad")), End)
    assert end.status == "failed"
    assert "ValueError" in end.reason


def test_a_run_does_not_heal_in_circles() -> None:
    run = Run()
    run.start()
    for _ in range(FRUITLESS + 1):
        run.feed(Failed("w00", run.state.generation, "between", "reset"))
        for worker in HOMES.values():
            run.ack(worker, 0)
    assert one(run.actions, End).status == "failed"


def test_the_state_before_is_not_touched() -> None:
    run = Run()
    run.start()
    before = run.state
    copy = before.copy()
    decide(before, Lost("w10", "closed"))
    assert before == copy
