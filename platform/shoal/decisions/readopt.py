"""A controller that comes back: what it knows again, from the record and from what the living workers say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from shoal.decisions.cells import Cell, Cells
from shoal.decisions.copies import Copies
from shoal.decisions.events import Event, Joined, Lost
from shoal.decisions.modes import Running
from shoal.decisions.state import Former, Shape, State, Worker
from shoal.names import node_of
from shoal.plan import Mesh, Seat
from shoal.protocol.said import Committed, Failed
from shoal.record.generations import Membership, membership

__all__ = ["Living", "Past", "as_lived", "heard", "rebuild", "unrecorded"]

AT_WORK = frozenset({"joining", "training", "inside", "across", "evaluating", "saving", "finished"})
"""Phases of a worker that takes part in its generation."""
AHEAD = 1000
"""Attempts between the newest that is known of and the first that a new controller uses: nobody may be in it."""


@dataclass(frozen=True)
class Past:
    """What the record says of a run: its last generation (-1: none yet), and how far it is. `known`: all of the
    generation stands there; if not (see `as_lived`), a member of a cell that is not known is None."""

    generation: int = -1
    cells: Mapping[int, tuple[str | None, ...]] = field(default_factory=dict)
    attempts: Mapping[int, int] = field(default_factory=dict)
    committed: int = 0
    evaluated: int = -1
    checkpoint: int = 0
    known: bool = True
    shape: Mapping[str, int] | None = None
    """See `record.generations.Membership`."""
    former: Mapping[str, int] | None = None
    """The shape before that."""
    changed: int = -1
    """Steps at which it changed, if no generation has begun at others since."""

    @classmethod
    def read(cls, events: Iterable[Mapping[str, Any]], steps: int, checkpoint: int) -> Past:
        """From the journal, the committed steps on record and the last whole checkpoint."""
        last: Membership | None = None
        former: Mapping[str, int] | None = None
        evaluated = changed = -1
        for event in events:
            if event["kind"] == "run_started":
                last, evaluated, changed = None, -1, -1
            elif event["kind"] == "generation":
                before, last = last, membership(last, event)
                if before is not None and before.shape != last.shape:
                    former, changed = before.shape, last.step
                elif last.step != changed:
                    changed = -1
            elif event["kind"] == "evaluation":
                evaluated = int(event["step"])
        if last is None:
            return cls(committed=steps, checkpoint=checkpoint)
        cells = {int(cell): tuple(crew) for cell, crew in last.cells.items()}
        attempts = {int(cell): int(attempt) for cell, attempt in last.attempts.items()}
        where = (last.generation, cells, attempts, steps, min(evaluated, steps), checkpoint)
        return cls(*where, shape=last.shape, former=former, changed=changed)


@dataclass(frozen=True)
class Living:
    """A living worker's word of what it is doing. `steps`: committed steps of its state (-1: it has none); `shape`,
    `mesh`: of the cell whose world it stands in, None for the mesh that the job names; `kept`: shape, steps and rank of
    shards that it keeps beside that."""

    node: str
    seat: tuple[int, int] | None = None
    attempt: int = -1
    generation: int = -1
    phase: str = "spare"
    steps: int = -1
    shape: int = 0
    mesh: Mesh | None = None
    kept: tuple[tuple[int, int, int], ...] = ()

    def rank_of(self, shape: int, steps: int) -> int | None:
        """The rank of its shard of a shape after so many steps, if it has one."""
        if self.seat is not None and (self.shape, self.steps) == (shape, steps):
            return self.seat[1]
        return next((rank for number, at, rank in self.kept if (number, at) == (shape, steps)), None)


def as_lived(shape: Shape, past: Past, living: Mapping[str, Living]) -> Past:
    """The past as the living know it.

    A controller whose disk takes nothing forms generations all the same. If workers say that they are in one that is
    not on record, the newest of them is what the run is in: those of its cells of whom somebody lives, at the most
    steps that one of them stands at (fewer than on record if the run went back meanwhile). Who else was in it is not
    known, so it is not to go on (`rebuild`). If everybody has left it, the cells on record are asked.
    """
    newest = max((said.generation for said in living.values()), default=-1)
    if newest <= past.generation:
        return past
    seated = {worker: said for worker, said in living.items() if said.seat is not None}
    members = [said for said in seated.values() if said.generation == newest]
    if not members:
        return replace(past, generation=newest, known=False)
    first = min(members, key=lambda said: said.shape)  # others may stand in cells of another shape already
    members = [said for said in members if said.shape == first.shape]
    workers = first.mesh.workers if first.mesh is not None else shape.workers
    attempts = {said.seat[0]: said.attempt for said in members if said.seat is not None}
    cells: dict[int, list[str | None]] = {cell: [None] * workers for cell in attempts}
    for worker, said in seated.items():
        assert said.seat is not None
        cell, rank = said.seat
        if attempts.get(cell) == said.attempt:
            cells[cell][rank] = worker
    steps = max(said.steps for said in members)
    crews = {cell: tuple(crew) for cell, crew in cells.items()}
    lived = replace(past, generation=newest, cells=crews, attempts=attempts, known=False)
    if first.mesh is not None:
        told = {"number": first.shape, "cells": max(attempts) + 1, **asdict(first.mesh)}
        lived = replace(lived, shape=told)
    return lived if steps < 0 else replace(lived, committed=steps, evaluated=min(past.evaluated, steps))


def heard(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The number of the last word of each worker that the journal of this session holds."""
    last: dict[str, int] = {}
    for event in events:
        if event["kind"] == "run_started":
            last.clear()
        elif event.get("seq") is not None:
            last[event["actor"]] = max(last.get(event["actor"], -1), event["seq"])
    return last


def unrecorded(records: Sequence[Mapping[str, Any]], words: Iterable[Committed]) -> Sequence[Committed]:
    """The commits among the workers' words that are missing on record, in order; each takes the place of what the
    record holds from its step on. `records`: the committed steps.

    A commit counts if it follows what is there, or if what is there for its step is of an older generation: the run
    went back, and did the step again.
    """
    generations = {int(record["step"]): int(record["generation"]) for record in records}
    last = max(generations, default=-1)
    found = []
    for word in words:
        step, generation = word.steps - 1, word.generation
        follows = step == last + 1 and generation >= generations.get(last, -1)
        if follows or (step <= last and generation > generations.get(step, generation)):
            for undone in range(step, last + 1):
                generations.pop(undone, None)
            generations[step], last = generation, step
            found.append(word)
    return found


def rebuild(shape: Shape, past: Past, living: Mapping[str, Living]) -> tuple[State, Sequence[Event]]:
    """The state of a run that began in `shape` as if every member of the last generation still trained, and the events
    that set it right: the losses of those who are gone and the failures of those who are not where the record has them.

    If all are in place there are no events, and training never notices.
    """
    began, shape = shape, shape.again(past.shape)
    state = State.new(shape, {}, past.checkpoint)
    state.committed, state.generation, state.evaluated = past.committed, past.generation, past.evaluated
    state.recorded = past.committed
    state.copies.era = past.generation  # copies made before are not known of; new ones come with the next snapshots
    if past.changed == past.committed:
        state.formers = former_of(began.again(past.former), past, living)
    newest = max([*past.attempts.values(), *(said.attempt for said in living.values()), 0])
    empty = Cell((None,) * shape.workers, "empty", newest + AHEAD, newest + AHEAD)
    state.cells = Cells([empty] * shape.cells)
    seats = [(worker, Seat(cell, rank)) for cell, crew in past.cells.items() for rank, worker in enumerate(crew)]
    members = {worker: seat for worker, seat in seats if worker is not None}
    events: list[Event] = []
    for cell, crew in past.cells.items():
        state.cells[cell] = Cell(tuple(crew), "live", past.attempts[cell], newest + AHEAD)
    state.seats |= members
    for worker in members:  # the dead are known by name alone until their loss is taken in
        state.enter(worker, Worker(living[worker].node if worker in living else ""))
    if members:
        state.mode = Running(tuple(sorted(past.cells)))
    for worker, seat in members.items():
        said = living.get(worker)
        if said is None:
            events.append(Lost(worker, "it did not answer the controller that came back", node_of(worker)))
        elif None in past.cells[seat.cell]:
            events.append(
                Failed(worker, past.generation, "cell", "its cell was not whole when the controller came back")
            )
        elif said.seat != (seat.cell, seat.rank) or said.attempt != past.attempts[seat.cell]:
            events.append(Failed(worker, past.generation, "cell", "it had left its cell when the controller came back"))
        elif said.generation != past.generation or said.phase not in AT_WORK:
            events.append(Failed(worker, past.generation, "between", "it was stopped when the controller came back"))
        elif not past.known:
            events.append(Failed(worker, past.generation, "between", "its generation was not on record"))
    events += [Joined(worker, said.node) for worker, said in living.items() if worker not in members]
    return state, events


def former_of(shape: Shape, past: Past, living: Mapping[str, Living]) -> tuple[Former, ...]:
    """What the living keep of the shape that the run was in before, if it has committed nothing in the present one."""
    ranks = {worker: said.rank_of(shape.number, past.committed) for worker, said in living.items()}
    held = {worker: rank for worker, rank in ranks.items() if rank is not None}
    return (Former(shape, past.committed, held, Copies(era=past.generation)),) if held else ()
