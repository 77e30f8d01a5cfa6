"""A controller that comes back: what it knows again, from the record and from what the living workers say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.control.messages import Event, Failed, Joined, Lost
from shoal.control.state import Cell, Shape, State, Worker
from shoal.plan import Seat

__all__ = ["Past", "Said", "rebuild"]

AT_WORK = frozenset({"joining", "training", "inside", "across", "evaluating", "saving", "finished"})
"""Phases of a worker that takes part in its generation."""
AHEAD = 1000
"""Attempts between the newest that is known of and the first that a new controller uses: nobody may be in it."""


@dataclass(frozen=True)
class Past:
    """What the record says of a run: its last generation (-1: none yet), and how far it is."""

    generation: int = -1
    cells: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    attempts: Mapping[int, int] = field(default_factory=dict)
    committed: int = 0
    evaluated: int = -1
    checkpoint: int = 0

    @classmethod
    def read(cls, events: Iterable[Mapping[str, Any]], steps: int, checkpoint: int) -> Past:
        """From the journal, the committed steps on record and the last whole checkpoint."""
        last: Mapping[str, Any] | None = None
        evaluated = -1
        for event in events:
            if event["kind"] == "run_started":
                last, evaluated = None, -1
            elif event["kind"] == "generation":
                last = event
            elif event["kind"] == "evaluation":
                evaluated = int(event["step"])
        if last is None:
            return cls(committed=steps, checkpoint=checkpoint)
        cells = {int(cell): tuple(crew) for cell, crew in last["cells"].items()}
        attempts = {int(cell): int(attempt) for cell, attempt in last["attempts"].items()}
        return cls(int(last["generation"]), cells, attempts, steps, min(evaluated, steps), checkpoint)


@dataclass(frozen=True)
class Said:
    """A living worker's word of what it is doing."""

    node: str
    seat: tuple[int, int] | None = None
    attempt: int = -1
    generation: int = -1
    phase: str = "spare"


def rebuild(shape: Shape, past: Past, living: Mapping[str, Said]) -> tuple[State, Sequence[Event]]:
    """The state as if every member of the last generation still trained, and the events that set it right: the losses
    of those who are gone and the failures of those who are not where the record has them.

    If all are in place there are no events, and training never notices.
    """
    state = State.new(shape, {}, past.checkpoint)
    state.committed, state.generation, state.evaluated = past.committed, past.generation, past.evaluated
    state.era = past.generation  # copies made before are not known of; new ones come with the next snapshots
    newest = max([*past.attempts.values(), *(said.attempt for said in living.values()), 0])
    state.cells = [Cell((None,) * shape.workers, "empty", newest + AHEAD, newest + AHEAD) for _ in range(shape.cells)]
    members = {worker: Seat(cell, rank) for cell, crew in past.cells.items() for rank, worker in enumerate(crew)}
    events: list[Event] = []
    for cell, crew in past.cells.items():
        state.cells[cell] = Cell(crew, "live", past.attempts[cell], newest + AHEAD)
        state.seats |= {worker: Seat(cell, rank) for rank, worker in enumerate(crew)}
        # the dead are known by name alone until their loss is taken in
        state.workers |= {worker: Worker(living[worker].node if worker in living else "") for worker in crew}
    if members:
        state.mode, state.live = "running", tuple(sorted(past.cells))
    for worker, seat in members.items():
        said = living.get(worker)
        if said is None:
            events.append(Lost(worker, "it did not answer the controller that came back"))
        elif said.seat != (seat.cell, seat.rank) or said.attempt != past.attempts[seat.cell]:
            events.append(Failed(worker, past.generation, "cell", "it had left its cell when the controller came back"))
        elif said.generation != past.generation or said.phase not in AT_WORK:
            events.append(Failed(worker, past.generation, "between", "it was stopped when the controller came back"))
    events += [Joined(worker, said.node) for worker, said in living.items() if worker not in members]
    return state, events
