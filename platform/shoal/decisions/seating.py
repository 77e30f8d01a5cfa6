"""Who sits where after a change: cells filled from spares, put together from what is left, moved off nodes that go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

from shoal.decisions.actions import Action, Form, Release
from shoal.decisions.modes import Gathering
from shoal.decisions.state import State
from shoal.plan import Healer, Seat

__all__ = [
    "clear_all",
    "combine",
    "fill",
    "free",
    "hire_cell",
    "holders",
    "let_go",
    "movable",
    "release",
    "seated_on",
    "spares",
]


def is_spare(state: State, name: str | None) -> bool:
    """Whether it is a warm worker without a seat, in a successor too, on a node that may be used."""
    return (
        name is not None
        and name in state.idle
        and state.may_be_used(state.workers[name].node)
        and not any(name in cell.members for cell in state.successors.values())
    )


def spares(state: State) -> dict[str, str]:
    """Those workers -> node."""
    taken = {member for cell in state.successors.values() for member in cell.people()}
    there = ((name, state.workers[name].node) for name in state.idle - taken)
    return {name: node for name, node in there if state.may_be_used(node)}


def fill(state: State, actions: list[Action]) -> None:
    """Form every empty cell that can be, those that miss least first; the members of one that cannot become spares."""
    mode = state.mode
    if isinstance(mode, Gathering) and (
        mode.combines or mode.recalled is not None or mode.damaged or mode.filled is not None
    ):
        return  # first of all a cell from what is left
    size, idle = state.shape.workers, len(state.idle)
    missing = {i: state.cells[i].members.count(None) for i in state.cells.within("empty") if not state.arriving[i]}
    empties = sorted((i for i, n in missing.items() if n <= idle or n < size), key=missing.__getitem__)
    there: dict[str, str] | None = None  # found once, for as many cells as can be formed of them
    for index in empties:
        leave_bad_nodes(state, index)
        cell = state.cells[index]
        seats = [Seat(index, rank) for rank, member in enumerate(cell.members) if member is None]
        found = {seat: state.homes[seat] for seat in seats if is_spare(state, state.homes.get(seat))}
        rest = [seat for seat in seats if seat not in found]
        if rest:
            there = free(state) if there is None else there
            at_home = set(found.values())
            chosen = hire(state, rest, {name: there[name] for name in there if name not in at_home}, found)
            if not chosen:
                if cell.people():
                    state.clear(index)
                    there = None  # its members are spares now
                continue
            found |= chosen
        if there is not None:
            for worker in found.values():
                there.pop(worker, None)
        members = tuple(m or found[Seat(index, rank)] for rank, m in enumerate(cell.members))
        state.put(index, members, "forming")
        restore = state.checkpoint if isinstance(state.mode, Gathering) else None
        actions.append(Form(index, cell.attempt, members, restore, shape=state.shape.number))


def hire(state: State, seats: Sequence[Seat], there: Mapping[str, str], found: Mapping[Seat, str]) -> dict[Seat, str]:
    """Workers of `there` (worker -> node) for seats of a cell: beside their expert group, and away from other copies of
    the same shard; nothing if they are too few. `found`: who is to sit on others of its seats already."""
    if not seats or len(there) < len(seats):
        return {}
    asked = frozenset(seats)

    def at(seat: Seat) -> str | None:
        worker = None if seat in asked else state.cells[seat.cell].members[seat.rank] or found.get(seat)
        return None if worker is None else state.workers[worker].node

    seated = map(state.workers.__getitem__, [*state.seats, *found.values()])
    busy = Counter(map(attrgetter("node"), seated))
    shape = state.shape
    return Healer(shape.mesh, shape.cells, Counter(there.values()), at, busy, shape.site).hire(there, seats)


def hire_cell(state: State, index: int, there: Mapping[str, str]) -> tuple[str, ...]:
    """The same for a whole cell `index`, by rank; () if they are too few."""
    seats = [Seat(index, rank) for rank in range(state.shape.workers)]
    chosen = hire(state, seats, there, {})
    return tuple(chosen[seat] for seat in seats) if chosen else ()


def leave_bad_nodes(state: State, index: int) -> None:
    """Members of an empty cell give up their seats on nodes that go or were set aside."""
    cell = state.cells[index]
    if state.aside or state.going:
        members = [m if m is not None and state.may_be_used(state.workers[m].node) else None for m in cell.members]
        state.put(index, members, "empty")


def free(state: State) -> dict[str, str]:
    """Spares (worker -> node) but the home workers of seats that are still to be filled: these are not to be had for
    others while some are on their way."""
    there = spares(state)
    if not state.expected:
        return there
    empty = ((index, rank) for index in state.cells.within("empty") for rank in range(state.shape.workers))
    missing = (Seat(index, rank) for index, rank in empty if state.cells[index].members[rank] is None)
    taken = {state.homes.get(seat) for seat in missing}
    return {worker: node for worker, node in there.items() if worker not in taken}


def combine(state: State, mode: Gathering, actions: list[Action]) -> None:
    """Form one cell of workers that together still hold every shard at the committed step.

    Holders of different cells fit together: all cells hold the same state at the same step.
    """
    members, mode.combines = holders(state, mode), True
    clear_all(state)
    state.put(0, members, "forming")
    actions.append(Form(0, state.cells[0].attempt, members, keep=True, shape=state.shape.number))


def clear_all(state: State) -> None:
    """No cell has members any more."""
    for index in range(len(state.cells)):
        state.clear(index)


def holders(state: State, mode: Gathering) -> tuple[str, ...]:
    """A holder of each rank's shard; () if a shard has none."""
    found = {rank: worker for worker, rank in sorted(mode.held.items(), reverse=True) if worker in state.workers}
    ranks = range(state.shape.workers)
    return tuple(found[rank] for rank in ranks) if all(rank in found for rank in ranks) else ()


def movable(state: State) -> list[int]:
    """Live cells with a member on a node that goes, that can leave without taking the last copy along."""
    live = state.live
    cells = [cell for cell in seated_on(state, state.going) if cell in set(live)]
    return cells if len(cells) < len(live) else cells[1:]


def seated_on(state: State, nodes: Iterable[str]) -> list[int]:
    """Cells with a member on one of these nodes, in order."""
    names = (name for node in nodes for name in state.on_node.get(node, ()))
    return sorted({state.seats[name].cell for name in names if name in state.seats})


def release(state: State, actions: list[Action]) -> None:
    """Let go of workers without a seat on nodes that go."""
    dismiss(state, [w for node in state.going for w in sorted(state.on_node.get(node, ())) if w in state.idle], actions)


def let_go(state: State, count: int, actions: list[Action]) -> None:
    """Give up to `count` idle spares up, those first that keep no copies."""
    dismiss(state, sorted(spares(state), key=lambda worker: (worker in state.copies.held, worker))[:count], actions)


def dismiss(state: State, workers: Sequence[str], actions: list[Action]) -> None:
    """These workers are needed no more."""
    for worker in workers:
        state.leave(worker)
    if workers:
        actions.append(Release(tuple(workers)))
