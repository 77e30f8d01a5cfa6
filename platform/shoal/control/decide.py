"""The controller's decisions: a pure function of (state, event).

A generation is a membership. It ends by a drain: every living worker is told to stop, answers with how far its state
is, and only when all have answered is it decided what was committed and who goes on (`conclude`). Rungs, cheapest
first: retry, heal, shrink and grow, combine, recall, restore.
"""

from __future__ import annotations

from typing import Literal

from shoal.control import bounds
from shoal.control.conclude import conclude, end, fall_back, publish
from shoal.control.messages import (
    Action,
    CommitLate,
    Damaged,
    Draining,
    Ending,
    Event,
    Joined,
    Journal,
    Lost,
    Standstill,
    Stop,
    Unborn,
    Wanted,
)
from shoal.control.recall import appoint, form_recalled, hear
from shoal.control.seating import combine, evict, fill, join, let_go
from shoal.control.state import State, Worker
from shoal.plan import Seat
from shoal.protocol.said import (
    Ack,
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
    if state.mode == "ended":
        return actions
    match event:
        case Joined(worker, node, home):
            state.expected -= {worker}
            state.unborn.pop(node, None)
            state.workers[worker] = Worker(node, home)
            if home is not None and any(
                state.homes.get(Seat(home.cell, rank)) in state.expected for rank in range(state.shape.workers)
            ):
                return actions  # its cell cannot be formed before the others of it are here
        case Lost(worker, how):
            lose(state, worker, how, actions)
        case Unborn(worker, node, why):
            lose(state, worker, why, actions)
            bounds.unborn(state, node, why, actions)
        case Ready(worker, index, attempt):
            ready(state, worker, index, attempt)
        case Acked(worker, generation, ack):
            if generation == state.generation and worker in state.workers:
                if state.mode == "running":
                    drain(state, f"{worker} was stopped by a controller before this one", actions)
                acked(state, worker, ack, actions)
                if state.awaited:
                    return actions
        case Committed(_, generation, steps):
            if generation == state.generation and steps > state.committed:
                bounds.committed(state, steps)
                lift(state, list(state.acks), actions)
            return actions
        case Evaluated(_, generation, steps):
            if generation == state.generation:
                state.evaluated = max(state.evaluated, steps)
            return actions
        case CopyHeld(worker, rank, steps, era):
            hear(state, worker, rank, steps, era)
            return actions
        case Checkpointed(steps):
            state.checkpoint = max(state.checkpoint, steps)
            if state.verdict and state.checkpoint >= state.committed:
                end(state, actions)
            return actions
        case Damaged():
            pass_over(state, event, actions)
        case NotSaved(steps, reason):
            state.unsaved = reason
            if state.verdict and steps >= state.committed:
                state.verdict = f"{state.verdict}; its state could not be saved ({reason})"
                end(state, actions)
            return actions
        case Finished(worker, generation):
            if generation == state.generation and (state.mode == "running" or state.pausing):
                state.finished.add(worker)
                if len(state.finished) == len(state.live) * state.shape.workers:
                    finished(state, actions)
        case Draining(node):
            state.draining.setdefault(node, False)
        case Wanted(count):
            let_go(state, count, actions)
        case Failed():
            fail(state, event, actions)
        case Standstill(reason):
            stand_still(state, reason, actions)
        case Ending(reason, status):
            give_up(state, reason, actions, status)
    for what in (exhaust, settle, exhaust):
        if state.mode != "ended":
            what(state, actions)
    return actions


def finished(state: State, actions: list[Action]) -> None:
    """Every worker is through. A run is not done without its last state."""
    if state.checkpoint < state.committed:
        state.verdict = f"every step is committed, but the last state could not be saved ({state.unsaved})"
    end(state, actions, done=not state.verdict)


def pass_over(state: State, event: Damaged, actions: list[Action]) -> None:
    """Go back behind a checkpoint that is damaged, once, however many cells say so."""
    if event.steps != state.checkpoint or state.mode != "gathering":
        return
    if event.older is None:
        give_up(state, f"{event.reason}; no older checkpoint is left", actions)
    else:
        state.checkpoint = event.older
        fall_back(state, actions)


def exhaust(state: State, actions: list[Action]) -> None:
    """End a run that gets nowhere."""
    if reason := bounds.exhausted(state):
        give_up(state, reason, actions)


def give_up(state: State, reason: str, actions: list[Action], ends: Literal["failed", "stopped"] = "failed") -> None:
    """The run cannot go on: save its state and end it. What fails from now on ends it at once."""
    if state.verdict:
        return
    state.verdict, state.ends = reason, ends
    if state.mode == "gathering" and not state.held:
        end(state, actions)
    else:
        drain(state, reason, actions)


def ready(state: State, worker: str, index: int, attempt: int) -> None:
    cell, successor = state.cells[index], state.successors.get(index)
    if cell.phase == "forming" and cell.attempt == attempt:
        state.cells[index] = cell.with_ready(worker)
    elif successor is not None and successor.attempt == attempt:
        state.successors[index] = successor.with_ready(worker)


def acked(state: State, worker: str, ack: Ack, actions: list[Action]) -> None:
    """Members of a broken cell must have left it, or have nothing more to do in it."""
    state.acks[worker] = ack
    seat = state.seats.get(worker)
    if seat is not None and (seat.cell not in state.broken or ack.out or ack.whole):
        state.awaited.discard(worker)
    news = ack.steps > state.committed
    state.committed = max(state.committed, ack.steps)
    lift(state, list(state.acks) if news else [worker], actions)


def lift(state: State, workers: list[str], actions: list[Action]) -> None:
    """Who has answered from behind a committed step commits it at once, and answers again: a peer of its cell may have
    gone on and wait for it inside the next step, where nothing can be said to it."""
    behind = [w for w in workers if 0 <= state.acks[w].steps < state.committed and not state.acks[w].out]
    if behind and state.mode == "draining":
        for worker in behind:
            del state.acks[worker]
        state.awaited |= set(behind)
        actions.append(CommitLate(state.generation, state.committed, tuple(behind)))


def lose(state: State, worker: str, how: str, actions: list[Action]) -> None:
    """Take a dead worker out of everything it was part of."""
    state.expected -= {worker}
    seat = state.seats.get(worker)
    gone = state.workers.pop(worker, None)
    state.acks.pop(worker, None)
    state.awaited.discard(worker)
    state.held.pop(worker, None)
    state.copies.pop(worker, None)
    state.disband(worker)
    state.spent += 1
    state.cause = f"{worker} is gone ({how})"
    if gone is not None and gone.node and gone.node not in state.draining:
        bounds.strike(state, gone.node, actions)
    if seat is None:
        return
    if state.verdict and state.mode != "draining":
        end(state, actions)
        return
    cell = state.cells[seat.cell]
    members = tuple(None if m == worker else m for m in cell.members)
    state.put(seat.cell, members, cell.phase)
    if cell.phase == "live":
        if state.mode == "running":
            bounds.count_fatal(state)
        damage(state, seat.cell, state.cause, actions)
    else:
        state.empty(seat.cell)


def stand_still(state: State, reason: str, actions: list[Action]) -> None:
    """Nothing moves: form again what stands still, once; then it is nothing that forming again can mend."""
    state.still += 1
    state.cause = reason
    if state.verdict:
        state.verdict = f"{state.verdict}; its state could not be saved ({reason})"
        end(state, actions)
    elif state.mode == "gathering":
        for index, cell in enumerate(state.cells):
            if cell.phase == "forming":
                not_formed(state, index, None, reason, actions)
    else:
        drain(state, reason, actions)


def not_formed(state: State, index: int, worker: str | None, reason: str, actions: list[Action]) -> None:
    """A cell's world did not come up: it is formed again, under another name."""
    fields = {"cell": index, "attempt": state.cells[index].attempt, "actor": worker, "reason": reason}
    actions.append(Journal("formation_failed", fields))
    state.fruitless += 1
    state.cause = reason
    state.empty(index)


def fail(state: State, event: Failed, actions: list[Action]) -> None:
    """A worker that lives cannot go on."""
    seat = state.seats.get(event.worker)
    if state.verdict and state.mode != "draining":
        if event.generation == state.generation or (event.where == "form" and seat is not None):
            end(state, actions)
    elif event.where == "code":
        reason = f"{event.worker}: {event.message}"
        if seat is not None and seat.cell in state.live:
            state.verdict = state.verdict or reason
            damage(state, seat.cell, reason, actions)  # its peers may wait for it inside a collective
        else:
            give_up(state, reason, actions)
    elif seat is None:
        if any(cell.attempt == event.attempt and event.worker in cell.members for cell in state.successors.values()):
            state.disband(event.worker)
    elif event.where == "form":
        cell = state.cells[seat.cell]
        if cell.phase == "forming" and cell.attempt == event.attempt:
            not_formed(state, seat.cell, event.worker, event.message, actions)
    elif event.generation == state.generation and seat.cell in state.live:
        if event.where == "corrupt":
            state.tainted.update(state.cells[seat.cell].people())
        if event.where in ("cell", "corrupt"):
            damage(state, seat.cell, f"{event.worker}: {event.message}", actions)
        else:
            drain(state, f"{event.worker}: {event.message}", actions)


def damage(state: State, cell: int, reason: str, actions: list[Action]) -> None:
    """A live cell's world is unusable: its members must leave it, whatever they answered before."""
    if cell in state.live and cell not in state.broken:
        state.broken |= {cell}
        if state.mode == "draining":
            stop(state, actions)
    drain(state, reason, actions)


def drain(state: State, reason: str, actions: list[Action]) -> None:
    """End the current generation, once; a pause is cut short."""
    state.cause = reason
    if state.mode == "running":
        state.mode = "draining"
        state.acks = {}
        actions.append(Journal("drain", {"generation": state.generation, "reason": reason}))
        stop(state, actions)
    elif state.mode == "draining" and state.pausing:
        stop(state, actions)


def stop(state: State, actions: list[Action]) -> None:
    """Tell everybody; only those must answer (again) who have not, or whose answer does not do any more."""
    state.pausing = False
    for worker in state.crew():
        ack = state.acks.get(worker)
        if ack is None or (state.seats[worker].cell in state.broken and not (ack.out or ack.whole)):
            state.awaited.add(worker)
    actions.append(Stop(state.generation, tuple(sorted(state.broken)), tuple(state.crew())))


def settle(state: State, actions: list[Action]) -> None:
    """Do all that the state now allows."""
    if state.cells[0].phase == "empty":
        gone = state.held and not combine(state, actions)
        if gone or (state.recalled >= 0 and not form_recalled(state, actions)):
            fall_back(state, actions)
    if not state.verdict:
        fill(state, actions)
    phases = [cell.phase for cell in state.cells]
    if state.mode == "gathering" and state.aside and set(phases) == {"empty"} and not state.expected:
        state.aside, state.strikes = frozenset(), {}  # a bad node is better than none
        fill(state, actions)
    if state.mode == "gathering" and "ready" in phases and "forming" not in phases and not state.expected:
        publish(state, [c for c, phase in enumerate(phases) if phase == "ready"], {}, actions)
        if not state.verdict:
            fill(state, actions)
    if state.mode == "running" and not state.verdict:
        join(state, actions)
        evict(state, actions)
        appoint(state, actions)
    if state.mode == "draining":
        conclude(state, actions)
