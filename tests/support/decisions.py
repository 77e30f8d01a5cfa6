"""Runs that are stepped event by event, with no cluster."""

from __future__ import annotations

from typing import TypeVar

from shoal.decisions.actions import Action, Copied, Death, Generation, Journal, Leaves, PutOnRecord
from shoal.decisions.decide import apply, decide
from shoal.decisions.events import Event, Joined, Looked, Sign
from shoal.decisions.shape import Shape
from shoal.decisions.state import State
from shoal.plan import Seat
from shoal.protocol.said import Ack, Acked, Phase, Ready

HOMES = {Seat(c, r): f"w{c}{r}" for c in range(2) for r in range(2)}
NODES = {"w00": "n1", "w01": "n1", "w10": "n2", "w11": "n2", "s0": "n3", "s1": "n3"}


class Stepped:
    """Feeds events to the controller's decisions and keeps what was answered. `in_place`: as the controller does it;
    otherwise the state before an event stays as it was."""

    def __init__(self, state: State, *, in_place: bool = False) -> None:
        self.state, self._in_place = state, in_place
        self.actions: list[Action] = []

    def feed(self, *events: Event) -> list[Action]:
        fresh: list[Action] = []
        for event in events:
            if self._in_place:
                fresh += apply(self.state, event)
            else:
                self.state, actions = decide(self.state, event)
                fresh += actions
        self.actions += fresh
        return fresh

    def ack(
        self, worker: str, steps: int, done: tuple[int, ...] = (), *, out: bool = False, whole: bool = False
    ) -> list[Action]:
        """Let a worker answer a stop."""
        seat = self.state.seats.get(worker)
        rank = -1 if seat is None else seat.rank
        return self.feed(Acked(worker, self.state.generation, Ack(steps, done=done, out=out, whole=whole, rank=rank)))


class Run(Stepped):
    """Two cells of two workers, `HOMES`."""

    def __init__(self, checkpoint: int = 0, steps: int = 100) -> None:
        super().__init__(State.new(Shape(2, 2, steps, lambda step, workers: 2), HOMES, checkpoint))
        self.now = 0.0

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

    def stand_up_to_pause(self) -> list[Action]:
        """Let every forming cell stand: the others are to pause for it."""
        forming = [(index, self.state.cells[index]) for index in self.state.cells.within("forming")]
        return self.feed(*(Ready(m, index, cell.attempt) for index, cell in forming for m in cell.people()))

    def stand_up_and_join(self) -> None:
        """Let a forming cell stand, and everybody stop for it; `w00` has committed nothing new."""
        for index, cell in enumerate(self.state.cells):
            if cell.phase == "forming":
                self.feed(*(Ready(m, index, cell.attempt) for m in cell.people()))
        while self.state.awaited:
            for worker in sorted(self.state.awaited):
                self.ack(worker, 12)

    def stand_still(self, phase: Phase = Phase.ACROSS) -> list[Action]:
        """Two looks, between which nobody has moved for 10,000 seconds."""
        begun = self.now
        fresh: list[Action] = []
        for self.now in (begun + 1.0, begun + 10_001.0):
            fresh += self.look(self.now, *(self.sign(worker, phase, begun) for worker in self.state.workers))
        return fresh

    def look(self, now: float, *signs: Sign) -> list[Action]:
        """A look at what workers were last heard of."""
        return self.feed(Looked(now, signs))

    def sign(self, worker: str, phase: str, since: float, heard: float | None = None) -> Sign:
        """What `worker` was last heard of: now, if nothing else is said."""
        heard = self.now if heard is None else heard
        return Sign(worker, Phase(phase), self.state.committed, heard, since, self.now - heard)

    def spares(self) -> None:
        self.feed(Joined("s0", "n3"), Joined("s1", "n3"))


def deeds(actions: list[Action]) -> list[Action]:
    """What is done beside writing the record."""
    return [action for action in actions if not isinstance(action, Journal | Death | PutOnRecord | Leaves | Copied)]


A = TypeVar("A")


def one(actions: list[Action], kind: type[A]) -> A:
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]
