"""Who sits where after a change: cells filled from spares, put together from what is left, moved off nodes that go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

from shoal.control.messages import Action, Form, Journal, Pause, Release
from shoal.control.state import Cell, State
from shoal.plan import Healer, Seat

__all__ = ["combine", "evict", "fill", "hire_cell", "join", "let_go", "movable", "release"]


def fill(state: State, actions: list[Action]) -> None:
    """Form every empty cell that can be, those that miss least first; the members of one that cannot become spares."""
    empties = [index for index, cell in enumerate(state.cells) if cell.phase == "empty"]
    empties.sort(key=lambda index: state.cells[index].members.count(None))
    if state.held or state.recalled >= 0 or not empties:
        return  # first of all a cell from what is left
    reserved = reserve(state)
    for index in empties:
        cell = state.cells[index]
        leave_bad_nodes(state, index)
        cell = state.cells[index]
        seats = [Seat(index, rank) for rank, member in enumerate(cell.members) if member is None]
        if any(state.homes.get(seat) in state.expected for seat in seats):
            continue
        spares = state.spares()
        found = {seat: state.homes[seat] for seat in seats if state.homes.get(seat) in spares}
        for worker in found.values():
            del spares[worker]
        rest = [seat for seat in seats if seat not in found]
        free = {worker: node for worker, node in spares.items() if worker not in reserved}
        chosen = hire(state, rest, free, found)
        if len(chosen) < len(rest):
            state.put(index, (None,) * state.shape.workers, "empty", rung="grow" if state.live else "start")
            continue
        found |= chosen
        members = tuple(m or found[Seat(index, rank)] for rank, m in enumerate(cell.members))
        state.put(index, members, "forming")
        restore = state.checkpoint if state.mode == "gathering" else None
        actions.append(Form(index, cell.attempt, members, restore))


def hire(state: State, seats: Sequence[Seat], spares: Mapping[str, str], found: Mapping[Seat, str]) -> dict[Seat, str]:
    """Spares (worker -> node) for seats of a cell: beside their expert group, and away from other copies of the same
    shard; nothing if they are too few. `found`: who is to sit on others of its seats already."""
    if not seats or len(spares) < len(seats):
        return {}
    asked = frozenset(seats)

    def at(seat: Seat) -> str | None:
        worker = None if seat in asked else state.cells[seat.cell].members[seat.rank] or found.get(seat)
        return None if worker is None else state.workers[worker].node

    seated = map(state.workers.__getitem__, [*state.seats, *found.values()])
    busy = Counter(map(attrgetter("node"), seated))
    shape = state.shape
    return Healer(shape.mesh, shape.cells, Counter(spares.values()), at, busy, shape.site).hire(spares, seats)


def hire_cell(state: State, index: int, spares: Mapping[str, str]) -> tuple[str, ...]:
    """The same for a whole cell `index`, by rank; () if the spares are too few."""
    seats = [Seat(index, rank) for rank in range(state.shape.workers)]
    chosen = hire(state, seats, spares, {})
    return tuple(chosen[seat] for seat in seats) if chosen else ()


def leave_bad_nodes(state: State, index: int) -> None:
    """Members of an empty cell give up their seats on nodes that go or were set aside."""
    cell = state.cells[index]
    bad = state.aside.union(state.draining)
    if bad:
        members = [m if m is not None and state.workers[m].node not in bad else None for m in cell.members]
        state.put(index, members, "empty")


def reserve(state: State) -> set[str | None]:
    """Home workers of seats still to be filled: not to be had for others while some are on their way."""
    if not state.expected:
        return set()
    return {
        state.homes.get(Seat(c, r)) for c, cell in enumerate(state.cells) for r, m in enumerate(cell.members) if not m
    }


def combine(state: State, actions: list[Action]) -> bool:
    """Form one cell of workers that together still hold every shard at the committed step; False if they do not.

    Holders of different cells fit together: all cells hold the same state at the same step.
    """
    holders: list[str | None] = [None] * state.shape.workers
    for worker, rank in sorted(state.held.items(), reverse=True):
        if worker in state.workers:
            holders[rank] = worker
    if None in holders:
        state.held = {}
        return False
    for index in range(len(state.cells)):
        state.put(index, (None,) * state.shape.workers, "empty")
    members = tuple(m for m in holders if m is not None)
    state.put(0, members, "forming", rung="combine")
    actions.append(Form(0, state.cells[0].attempt, members, keep=True))
    return True


def movable(state: State) -> list[int]:
    """Live cells with a member on a node that goes, that can leave without taking the last copy along."""
    if not state.draining:
        return []
    cells = [c for c in state.live if any(state.workers[m].node in state.draining for m in state.cells[c].people())]
    return cells if len(cells) < len(state.live) else cells[1:]


def join(state: State, actions: list[Action]) -> None:
    """Pause for cells that stand ready to join, or to take the place of one whose nodes go."""
    joining = [f"cell {index} joins" for index, cell in enumerate(state.cells) if cell.phase == "ready"]
    taken = [c for c in movable(state) if c in state.successors and state.successors[c].phase == "ready"]
    if (joining or taken) and state.committed < state.shape.steps:
        pause(state, " and ".join([*joining, *(f"cell {c} moves" for c in taken)]), taken, actions)


def evict(state: State, actions: list[Action]) -> None:
    """Move everybody off nodes that go, whole cells at a time: a successor is formed on spares while the cell goes on,
    and takes its place at a step boundary; where spares are too few the cell leaves first."""
    news = sorted(node for node, done in state.draining.items() if not done)
    if not news or state.mode != "running":
        return
    release(state, actions)
    touched = any(state.workers[m].node in news for c in state.live for m in state.cells[c].people())
    if touched and state.committed < state.shape.steps:
        leaving = movable(state)
        for index in leaving:
            if index not in state.successors:
                form_successor(state, index, actions)
        if state.successors.keys() & set(leaving):
            return
        pause(state, f"{' and '.join(news)} will be taken away", leaving, actions)
    for node in news:
        state.draining[node] = True


def form_successor(state: State, index: int, actions: list[Action]) -> None:
    """Form a cell to take the place of a live one, if there are spares for all of it."""
    reserved = reserve(state)
    free = {worker: node for worker, node in state.spares().items() if worker not in reserved}
    members = hire_cell(state, index, free)
    if members:
        cell = state.cells[index] = replace(state.cells[index], named=state.cells[index].named + 1)
        state.successors[index] = Cell(members, "forming", cell.named, rung="drain")
        actions.append(Form(index, cell.named, members))


def pause(state: State, reason: str, leaving: Sequence[int], actions: list[Action]) -> None:
    """End the generation in order, at the next step boundary, and the cells `leaving` with it."""
    state.mode, state.pausing, state.leaving = "draining", True, frozenset(leaving)
    state.acks, state.awaited = {}, set(state.crew())
    actions.append(Journal("drain", {"generation": state.generation, "reason": reason}))
    actions.append(Pause(state.generation, tuple(state.crew())))


def release(state: State, actions: list[Action]) -> None:
    """Let go of workers without a seat on nodes that go."""
    idle = tuple(w for w, worker in state.workers.items() if worker.node in state.draining and w not in state.seats)
    if idle:
        for worker in idle:
            del state.workers[worker]
            state.disband(worker)
        actions.append(Release(idle))


def let_go(state: State, count: int, actions: list[Action]) -> None:
    """Give up to `count` idle spares up, those first that keep no copies."""
    idle = tuple(sorted(state.spares(), key=lambda worker: (worker in state.copies, worker))[:count])
    for worker in idle:
        del state.workers[worker]
        state.copies.pop(worker, None)
    if idle:
        actions.append(Release(idle))
