"""A generation is told to end, at once or at the next boundary that all agree on; who answers, and what is still
committed in it. Pure.

A worker died, a world broke, a cell is to join or to leave, or the run is given up. It is over when nobody alive owes
an answer; what comes then is decided in `rungs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from shoal.decisions import bounds
from shoal.decisions.actions import Action, CommitLate, Death, Form, Journal, Leaves, Pause, Release, Stop
from shoal.decisions.cells import Cell
from shoal.decisions.events import Lost
from shoal.decisions.halt import end
from shoal.decisions.modes import Gathering, Halt, Pausing, Running, Stopping
from shoal.decisions.seating import free, hire_cell, movable, release, seated_on
from shoal.decisions.state import State
from shoal.protocol.said import Ack

__all__ = ["acked", "commit_late", "damage", "died", "evict", "give_up", "join", "lose", "pause", "stop", "unborn"]


def stop(state: State, reason: str, actions: list[Action], broken: int | None = None) -> None:
    """End the current generation, once; a pause is cut short. `broken`: a live cell whose world is unusable."""
    state.tally.cause, mode = reason, state.mode
    fresh = frozenset(() if broken is None else (broken,))
    match mode:
        case Running(live):
            state.mode = ends = Stopping(live, broken=fresh)
            actions.append(Journal("drain", {"generation": state.generation, "reason": reason}))
            order_stop(state, ends, state.crew(), actions)
        case Pausing(live, _, leaving, awaited, acks, _):
            state.mode = ends = Stopping(live, leaving, fresh, awaited, acks)
            order_stop(state, ends, state.crew(), actions)
        case Stopping() if not fresh <= mode.broken:
            mode.broken |= fresh
            order_stop(state, mode, state.crew(fresh), actions)


def damage(state: State, cell: int, reason: str, actions: list[Action]) -> None:
    """A cell's world is unusable: its members must leave it, whatever they answered before."""
    if cell in state.live:
        stop(state, reason, actions, broken=cell)


def order_stop(state: State, mode: Stopping, workers: Sequence[str], actions: list[Action]) -> None:
    """Tell these workers; only those must answer (again) who have not, or whose answer does not do any more."""
    for worker in workers:
        ack = mode.acks.get(worker)
        if ack is None or not will_do(state, mode, worker, ack):
            mode.awaited.add(worker)
    mode.since = None
    broken = tuple(sorted(mode.broken))
    actions.append(Stop(state.generation, broken, tuple(workers), state.known, state.shape.number))


def will_do(state: State, mode: Pausing | Stopping, worker: str, ack: Ack) -> bool:
    """Whether an answer is enough: members of a broken cell must have left it, or have nothing more to do in it."""
    broken = mode.broken if isinstance(mode, Stopping) else ()
    return state.seats[worker].cell not in broken or ack.out or ack.whole


def pause(
    state: State, mode: Running, reason: str, leaving: Iterable[int], actions: list[Action], *, reshapes: bool = False
) -> None:
    """End the generation in order, at the next step boundary, and the cells `leaving` with it; with `reshapes` all may
    take another shape."""
    crew = tuple(state.crew())
    state.mode = Pausing(mode.live, mode.finished, frozenset(leaving), set(crew), reshapes=reshapes)
    actions.append(Journal("drain", {"generation": state.generation, "reason": reason}))
    actions.append(Pause(state.generation, crew))
    actions += [leaves(state, cell) for cell in sorted(state.mode.leaving)]


def acked(state: State, mode: Pausing | Stopping, worker: str, ack: Ack, actions: list[Action]) -> None:
    """A living worker has answered; what it committed is committed. If it has left a cell that was not broken, a
    controller before this one had it form another: the cell is none any more."""
    if ack.out and worker in state.seats:
        damage(state, state.seats[worker].cell, f"{worker} has left its cell", actions)
        mode = state.mode if isinstance(state.mode, Stopping) else mode
    mode.acks[worker] = ack
    if worker in state.seats and will_do(state, mode, worker, ack):
        mode.awaited.discard(worker)
    news = ack.steps > state.committed
    if news:
        state.committed, state.formers = ack.steps, ()
    commit_late(state, list(mode.acks) if news else [worker], actions)


def commit_late(state: State, workers: Iterable[str], actions: list[Action]) -> None:
    """Who has answered from behind a committed step commits it at once, and answers again: a peer of its cell may have
    gone on and wait for it inside the next step, where nothing can be said to it."""
    mode = state.mode
    if not isinstance(mode, Pausing | Stopping):
        return
    behind = [w for w in workers if 0 <= mode.acks[w].steps < state.committed and not mode.acks[w].out]
    if behind:
        for worker in behind:
            del mode.acks[worker]
        mode.awaited |= set(behind)
        if isinstance(mode, Stopping):
            mode.since = None
        actions.append(CommitLate(state.generation, state.committed, tuple(behind), state.newest))


# ---- why it ends


def died(state: State, event: Lost, actions: list[Action]) -> None:
    """A worker that was there is dead: tell, then do without it."""
    seat = state.seats.get(event.worker)
    live = seat is not None and state.cells[seat.cell].phase == "live"
    if seat is not None:
        state.tally.deaths = bounds.struck(state.tally.deaths, announced=event.node in state.going)
    actions.append(Death(event.worker, event.node, event.pid, event.how, event.alive, seat, state.committed, live=live))
    lose(state, event.worker, event.how, actions)


def unborn(state: State, worker: str, node: str, why: str, trace: str, actions: list[Action]) -> None:
    """A worker that was asked for cannot start."""
    actions.append(Release((worker,)))
    actions.append(Journal("not_started", {"actor": worker, "node": node, "how": why, "trace": trace or None}))
    lose(state, worker, why, actions)
    state.coming.pop(node, None)
    bounds.unborn(state, node, why, actions)


def lose(state: State, worker: str, how: str, actions: list[Action]) -> None:
    """Take a worker that is no more out of everything it was part of."""
    state.heard(worker)
    seat = state.seats.get(worker)
    gone = state.leave(worker)
    state.acks.pop(worker, None)
    state.awaited.discard(worker)
    if isinstance(state.mode, Gathering):
        state.mode.held.pop(worker, None)
        if state.mode.filled is not None:
            state.mode.filled.pop(worker, None)
    state.tally.spent += 1
    state.tally.cause = f"{worker} is gone ({how})"
    if gone is not None and gone.node and gone.node not in state.going:
        bounds.strike(state, gone.node, actions)
        if state.shape.hold and gone.node in state.on_node and state.may_be_used(gone.node):
            state.coming[gone.node] = state.now + state.watchdog.timeouts.start
    if seat is None:
        return
    if state.halt is not None and not isinstance(state.mode, Pausing | Stopping):
        end(state, actions)
        return
    cell = state.cells[seat.cell]
    state.put(seat.cell, [None if m == worker else m for m in cell.members], cell.phase)
    if cell.phase == "live":
        if isinstance(state.mode, Running):
            state.tally.failures += 1
            bounds.count_fatal(state)
        damage(state, seat.cell, state.tally.cause, actions)
    else:
        state.empty(seat.cell)


def join(state: State, mode: Running, actions: list[Action]) -> None:
    """Pause for cells that stand ready to join, or to take the place of one whose nodes go."""
    joining = [f"cell {index} joins" for index in state.cells.within("ready")]
    standing = [index for index, cell in state.successors.items() if cell.phase == "ready"]
    taken = [c for c in movable(state) if c in standing] if standing else []
    if (joining or taken) and state.committed < state.shape.steps:
        reason = " and ".join([*joining, *(f"cell {c} moves" for c in taken)])
        pause(state, mode, reason, taken, actions)


def evict(state: State, mode: Running, actions: list[Action]) -> None:
    """Move everybody off nodes that go, whole cells at a time: a successor is formed on spares while the cell goes on,
    and takes its place at a step boundary; where spares are too few the cell leaves first."""
    news = sorted(node for node, done in state.going.items() if not done)
    if not news:
        return
    release(state, actions)
    if set(mode.live).intersection(seated_on(state, news)) and state.committed < state.shape.steps:
        leaving = movable(state)
        for index in leaving:
            if index not in state.successors:
                form_successor(state, index, actions)
        if state.successors.keys() & set(leaving):
            return
        pause(state, mode, f"{' and '.join(news)} will be taken away", leaving, actions)
    for node in news:
        state.going[node] = True


def form_successor(state: State, index: int, actions: list[Action]) -> None:
    """Form a cell to take the place of a live one, if there are spares for all of it."""
    members = hire_cell(state, index, free(state))
    if members:
        cell = state.cells[index] = replace(state.cells[index], named=state.cells[index].named + 1)
        state.successors[index] = Cell(members, "forming", cell.named)
        state.watchdog.moved = None
        actions.append(leaves(state, index))
        actions.append(Form(index, cell.named, members, shape=state.shape.number))


def leaves(state: State, cell: int) -> Leaves:
    """That a live cell is to leave those of its nodes that will be taken away."""
    nodes = {state.workers[worker].node for worker in state.members([cell])}
    return Leaves(cell, tuple(sorted(nodes & state.going.keys())))


def give_up(
    state: State,
    reason: str,
    actions: list[Action],
    status: Literal["failed", "stopped"] = "failed",
    *,
    by_controller: bool = False,
) -> None:
    """The run cannot go on, or is not to: save its state and end it. What fails from now on ends it at once.

    One that is only told to stop does so at the next step boundary: nobody owes an answer in the middle of a step.
    """
    if state.halt is not None:
        return
    state.halt = Halt(reason, status, by_controller)
    if isinstance(state.mode, Gathering) and not state.mode.combines and state.mode.filled is None:
        end(state, actions)
    elif status == "stopped" and isinstance(state.mode, Running):
        pause(state, state.mode, reason, (), actions)
    else:
        stop(state, reason, actions)
