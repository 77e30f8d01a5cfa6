"""What is said by every worker costs no look through all workers: decisions stay cheap at 16,384 of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shoal.decisions.events import Event, Joined, Lost
from shoal.decisions.modes import Running, Stopping
from shoal.decisions.shape import Shape
from shoal.decisions.state import State
from shoal.plan import Seat
from shoal.protocol.said import Ack, Acked, Committed, CopyHeld, Evaluated, Failed, Finished, Ready
from tests.support.decisions import Stepped

CELLS, SIZE = 16, 4
EVERYBODY = {Seat(c, r): f"w{c}-{r}" for c in range(CELLS) for r in range(SIZE)}
RANKS = {worker: seat.rank for seat, worker in EVERYBODY.items()}


class Counted(dict[str, Any]):
    """A table that counts how often it is walked through."""

    walks = 0

    def __iter__(self) -> Iterator[str]:
        Counted.walks += 1
        return super().__iter__()

    def items(self) -> Any:
        Counted.walks += 1
        return super().items()

    def values(self) -> Any:
        Counted.walks += 1
        return super().values()

    def copy(self) -> Any:
        Counted.walks += 1
        return super().copy()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> State:
    """A run that trains, in which every walk through all workers counts."""
    state = State.new(Shape(CELLS, SIZE, 100, lambda step, workers: CELLS, recall=True), EVERYBODY)
    run = Stepped(state, in_place=True)
    run.feed(*(Joined(worker, f"n{seat.cell}", seat) for seat, worker in EVERYBODY.items()))
    run.feed(*(Ready(worker, seat.cell, 0) for seat, worker in EVERYBODY.items()))
    assert isinstance(state.mode, Running)
    state.workers, state.seats = Counted(state.workers), Counted(state.seats)
    members = State.members

    def counted(self: State, cells: Any = None) -> Iterator[str]:
        Counted.walks += cells is None
        return members(self, cells)

    monkeypatch.setattr(State, "members", counted)
    Counted.walks = 0
    return state


def walks(state: State, *events: Event) -> int:
    before = Counted.walks
    Stepped(state, in_place=True).feed(*events)
    return Counted.walks - before


def test_what_workers_say_of_their_steps(run: State) -> None:
    said: list[Event] = []
    for worker in EVERYBODY.values():
        said += [Committed(worker, 0, 1), Evaluated(worker, 0, 1), CopyHeld(worker, 0, 1, 0), Finished(worker, 0)]
    assert walks(run, *said[:-1]) == 0


def test_a_death_walks_a_few_times_and_its_answers_not_at_all(run: State) -> None:
    assert walks(run, *(Lost(worker, "closed") for worker in ("w1-0", "w1-1", "w1-2", "w1-3"))) <= 2
    said: list[Event] = [Failed(worker, 0, "between") for worker in run.workers.keys()]  # noqa: SIM118
    said += [Acked(worker, 0, Ack(0, rank=RANKS[worker])) for worker in sorted(run.awaited)]
    assert walks(run, *said[:-1]) == 0
    assert isinstance(run.mode, Stopping)
    assert walks(run, said[-1]) <= 12
    assert isinstance(run.mode, Running)
