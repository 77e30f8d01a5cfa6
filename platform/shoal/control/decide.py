"""The controller's decisions: a pure function of (state, event).

A generation is a membership. It ends by a drain (`drain`): every living worker is told to stop and answers with how far
its state is. Only when all have answered is it decided what was committed and who goes on (`conclude`), by the cheapest
rung of the ladder that can be taken (`rungs`).
"""

from __future__ import annotations

from shoal.control import bounds
from shoal.control.actions import Action, Journal
from shoal.control.conclude import conclude
from shoal.control.drain import acked, commit_late, damage, drain
from shoal.control.events import Damaged, Ending, Event, Joined, Lost, Preemption, Standstill, Unborn, Wanted
from shoal.control.generation import begin
from shoal.control.halt import end, end_unsaved, finish, give_up
from shoal.control.modes import Draining, Ended, Gathering, Halt, Pausing, Running
from shoal.control.recall import assign_keepers, copy_held
from shoal.control.rungs import descend, form_first_again
from shoal.control.seating import evict, fill, join, let_go
from shoal.control.state import State, Worker
from shoal.ladder import Rung
from shoal.protocol.said import (
    Acked,
    Checkpointed,
    Committed,
    CopyHeld,
    Evaluated,
    Failed,
    Finished,
    NotSaved,
    Ready,
)

__all__ = ["apply", "decide"]


def decide(before: State, event: Event) -> tuple[State, list[Action]]:
    """The next state and what to do, after `event`; `before` is left as it is."""
    state = before.copy()
    return state, apply(state, event)


def apply(state: State, event: Event) -> list[Action]:
    """Change `state` by `event` and say what to do: `decide` without the copy, which is large at 16,384 workers."""
    actions: list[Action] = []
    if not isinstance(state.mode, Ended) and take(state, event, actions):
        for what in (exhaust, settle, exhaust):
            if not isinstance(state.mode, Ended):
                what(state, actions)
    return actions


def take(state: State, event: Event, actions: list[Action]) -> bool:
    """Take an event in. True if it may allow something that could not be done before."""
    match event:
        case Joined():
            return joined(state, event)
        case Lost(worker, how):
            lose(state, worker, how, actions)
        case Unborn(worker, node, why):
            lose(state, worker, why, actions)
            bounds.unborn(state, node, why, actions)
        case Ready(worker, index, attempt):
            return ready(state, worker, index, attempt)
        case Acked(worker, generation):
            return generation == state.generation and worker in state.workers and answered(state, event, actions)
        case Committed(_, generation, steps):
            if generation == state.generation and steps > state.committed:
                bounds.committed(state, steps)
                commit_late(state, list(state.acks), actions)
            return False
        case Evaluated(_, generation, steps):
            if generation == state.generation:
                state.evaluated = max(state.evaluated, steps)
            return False
        case CopyHeld(worker, rank, steps, era):
            copy_held(state, worker, rank, steps, era)
            return False
        case Checkpointed(steps):
            state.checkpoint = max(state.checkpoint, steps)
            if state.halt is not None and state.checkpoint >= state.committed:
                end(state, actions)
            return False
        case NotSaved(steps, reason, worker):
            if worker not in state.crew():  # of a cell that is no more: those who live save the same state
                return False
            state.unsaved = reason
            if state.halt is not None and steps >= state.committed:
                end_unsaved(state, reason, actions)
            return False
        case Finished(worker, generation):
            mode = state.mode
            if generation == state.generation and isinstance(mode, Running | Pausing):
                mode.finished.add(worker)
                if len(mode.finished) == len(mode.live) * state.shape.workers:
                    finish(state, actions)
            return False
        case Failed():
            return failed(state, event, actions)
        case Damaged():
            pass_over(state, event, actions)
        case Preemption(node):
            state.going.setdefault(node, False)
        case Wanted(count):
            let_go(state, count, actions)
        case Standstill(reason):
            stand_still(state, reason, actions)
        case Ending(reason, status):
            give_up(state, reason, actions, status)
    return True


def settle(state: State, actions: list[Action]) -> None:
    """Do all that the state now allows."""
    cells = state.cells
    if isinstance(state.mode, Gathering) and cells[0].phase == "empty":
        form_first_again(state, state.mode, actions)
    if state.halt is None:
        fill(state, actions)
    gathering = isinstance(state.mode, Gathering) and not state.expected
    if gathering and state.aside and not (cells.any("forming") or cells.any("ready") or cells.any("live")):
        state.aside, state.tally.strikes = frozenset(), {}  # a bad node is better than none
        fill(state, actions)
    if gathering and cells.any("ready") and not cells.any("forming"):
        begin(state, cells.within("ready"), {}, actions)
        if state.halt is None:
            fill(state, actions)
    if state.halt is None:
        for what in (join, evict):
            if isinstance(state.mode, Running):
                what(state, state.mode, actions)
        assign_keepers(state, actions)
    if isinstance(state.mode, Pausing | Draining) and not state.mode.awaited:
        conclude(state, state.mode, actions)


def exhaust(state: State, actions: list[Action]) -> None:
    """End a run that gets nowhere."""
    if reason := bounds.exhausted(state):
        give_up(state, reason, actions)


# ---- what workers say


def joined(state: State, event: Joined) -> bool:
    """A warm worker. Its cell is formed when the others that are planned for it are here."""
    state.heard(event.worker)
    state.tally.unborn.pop(event.node, None)
    state.enter(event.worker, Worker(event.node, event.home))
    return event.home is None or not state.arriving[event.home.cell]


def ready(state: State, worker: str, index: int, attempt: int) -> bool:
    """A worker stands in its cell's new world."""
    cell, successor = state.cells[index], state.successors.get(index)
    if cell.phase == "forming" and cell.attempt == attempt:
        state.cells[index] = cell = cell.with_ready(worker)
        return cell.phase == "ready"
    if successor is not None and successor.attempt == attempt:
        state.successors[index] = successor = successor.with_ready(worker)
        return successor.phase == "ready"
    return False


def answered(state: State, event: Acked, actions: list[Action]) -> bool:
    """A worker of the generation takes no part in it any more."""
    if isinstance(state.mode, Running):
        drain(state, f"{event.worker} was stopped by a controller before this one", actions)
    mode = state.mode
    if isinstance(mode, Pausing | Draining):
        acked(state, mode, event.worker, event.ack, actions)
    return not state.awaited


def failed(state: State, event: Failed, actions: list[Action]) -> bool:
    """A worker that lives cannot go on."""
    seat = state.seats.get(event.worker)
    current = event.generation == state.generation
    why = f"{event.worker}: {event.message}"
    if state.halt is not None and not isinstance(state.mode, Pausing | Draining):
        if current or (event.where == "form" and seat is not None):
            end(state, actions)
    elif event.where == "code":
        if seat is not None and seat.cell in state.live:
            state.halt = state.halt or Halt(why)
            damage(state, seat.cell, why, actions)  # its peers may wait for it inside a collective
        else:
            give_up(state, why, actions)
    elif seat is None:
        if any(cell.attempt == event.attempt and event.worker in cell.members for cell in state.successors.values()):
            state.disband(event.worker)
            return True
        return False
    elif event.where == "form":
        cell = state.cells[seat.cell]
        if cell.phase != "forming" or cell.attempt != event.attempt:
            return False
        not_formed(state, seat.cell, event.worker, event.message, actions)
    elif current and seat.cell in state.live:
        if event.where == "corrupt":
            state.tainted.update(state.cells[seat.cell].people())
        if event.where in ("cell", "corrupt"):
            damage(state, seat.cell, why, actions)
        else:
            drain(state, why, actions)
        return False
    return True


# ---- what becomes of workers and cells


def lose(state: State, worker: str, how: str, actions: list[Action]) -> None:
    """Take a dead worker out of everything it was part of."""
    state.heard(worker)
    seat = state.seats.get(worker)
    gone = state.leave(worker)
    state.acks.pop(worker, None)
    state.awaited.discard(worker)
    if isinstance(state.mode, Gathering):
        state.mode.held.pop(worker, None)
    state.tally.spent += 1
    state.tally.cause = f"{worker} is gone ({how})"
    if gone is not None and gone.node and gone.node not in state.going:
        bounds.strike(state, gone.node, actions)
    if seat is None:
        return
    if state.halt is not None and not isinstance(state.mode, Pausing | Draining):
        end(state, actions)
        return
    cell = state.cells[seat.cell]
    state.put(seat.cell, [None if m == worker else m for m in cell.members], cell.phase)
    if cell.phase == "live":
        if isinstance(state.mode, Running):
            bounds.count_fatal(state)
        damage(state, seat.cell, state.tally.cause, actions)
    else:
        state.empty(seat.cell)


def stand_still(state: State, reason: str, actions: list[Action]) -> None:
    """Nothing moves: form again what stands still, once; then it is nothing that forming again can mend."""
    state.tally.still += 1
    state.tally.cause = reason
    if state.halt is not None:
        end_unsaved(state, reason, actions)
    elif isinstance(state.mode, Gathering):
        for index in state.cells.within("forming"):
            not_formed(state, index, None, reason, actions)
    else:
        drain(state, reason, actions)


def not_formed(state: State, index: int, worker: str | None, reason: str, actions: list[Action]) -> None:
    """A cell's world did not come up: it is formed again, under another name."""
    fields = {"cell": index, "attempt": state.cells[index].attempt, "actor": worker, "reason": reason}
    actions.append(Journal("formation_failed", fields))
    state.tally.fruitless += 1
    state.tally.cause = reason
    state.empty(index)


def pass_over(state: State, event: Damaged, actions: list[Action]) -> None:
    """Go back behind a checkpoint that is damaged, once, however many cells say so."""
    if event.steps != state.checkpoint or not isinstance(state.mode, Gathering):
        return
    if event.older is None:
        give_up(state, f"{event.reason}; no older checkpoint is left", actions)
    else:
        state.checkpoint = event.older
        descend(state, actions, Rung.COMBINE)
