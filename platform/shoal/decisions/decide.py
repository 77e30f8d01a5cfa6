"""The controller's decisions: a pure function of (state, event).

A generation is a membership. It is left (`leaving`): every living worker is told to stop and answers with how far its
state is. Only when all have answered is it decided what was committed and who goes on, by the cheapest rung of the
ladder that can be taken (`rungs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.decisions import bounds
from shoal.decisions.actions import Action, Copied, End, Journal, SetAside
from shoal.decisions.checkpoints import pass_over, saved
from shoal.decisions.commits import committed
from shoal.decisions.events import (
    Changed,
    Ending,
    Erred,
    Event,
    FromWorker,
    Joined,
    Looked,
    Lost,
    PassedOver,
    Preemption,
    Recorded,
    RecordFull,
    Surveyed,
    TakenOver,
    Unborn,
    Wanted,
)
from shoal.decisions.figures import diverged
from shoal.decisions.formation import not_formed, ready
from shoal.decisions.halt import close, end, end_unsaved, finish
from shoal.decisions.leaving import acked, damage, died, evict, give_up, join, stop, unborn
from shoal.decisions.modes import Ended, Gathering, Halt, Pausing, Running, Stopping
from shoal.decisions.recall import assign_keepers, copy_held
from shoal.decisions.reshape import consider, fit, is_due
from shoal.decisions.rungs import begin_of, conclude, form_first_again
from shoal.decisions.seating import fill
from shoal.decisions.spares import give_up_spares, survey
from shoal.decisions.state import State, Worker
from shoal.decisions.watch import look
from shoal.protocol.said import (
    Acked,
    Adopted,
    Checkpointed,
    Committed,
    CopyHeld,
    Evaluated,
    Failed,
    Finished,
    Noted,
    NotSaved,
    Ready,
    Word,
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
        case Looked():
            return look(state, event, actions)
        case Surveyed():
            survey(state, event, actions)
            return isinstance(state.mode, Running | Gathering) and is_due(state)
        case Joined():
            return joined(state, event, actions)
        case Lost():
            died(state, event, actions)
        case Unborn(worker, node, why, trace):
            unborn(state, worker, node, why, trace, actions)
        case Preemption(node, deadline):
            if deadline:
                state.deadlines[node] = deadline
            if node not in state.going:
                state.going[node] = False
                actions.append(Journal("node_draining", {"node": node, "deadline": deadline}))
        case Wanted():
            give_up_spares(state, event, actions)
        case PassedOver():
            pass_over(state, event, actions)
        case Recorded():
            state.tally.erred = 0
            return False
        case Changed(took):
            state.seen = state.seen.changed(took)
            return False
        case RecordFull(reason, lines):
            why = f"the record could not be written ({reason}) and {lines} lines wait for it"
            give_up(state, why, actions, by_controller=True)
        case Erred(why):
            if reason := bounds.erred(state, why):
                give_up(state, reason, actions, by_controller=True)
        case Ending(reason, status, at_once):
            if at_once:
                close(state, End(status, reason), actions)
            else:
                give_up(state, reason, actions, status)
        case TakenOver():
            pass
        case _:
            return take_word(state, event, actions)
    return True


def take_word(state: State, event: FromWorker, actions: list[Action]) -> bool:
    """Take in what a worker says. True if it may allow something that could not be done before."""
    match event:
        case Ready(worker, index, attempt, seconds, size, held):
            if size:
                actions.append(Copied(index, seconds, size))
            return ready(state, worker, index, attempt, held)
        case Acked(worker, generation):
            return generation == state.generation and worker in state.workers and answered(state, event, actions)
        case Failed():
            return failed(state, event, actions)
        case Committed(_, generation):
            if generation == state.generation:
                committed(state, event, actions)
                return isinstance(state.mode, Stopping)
        case Adopted(worker, generation, seconds):
            if generation == state.generation and worker in state.seats:
                actions.append(Copied(state.seats[worker].cell, seconds))
        case Evaluated(_, generation, steps, metrics):
            if generation == state.generation and steps > state.evaluated:
                state.evaluated = steps
                if metrics:  # nothing is, without a held-out set
                    actions.append(Journal("evaluation", {**metrics, "step": steps}))
        case CopyHeld():
            copy_held(state, event)
        case Checkpointed():
            saved(state, event, actions)
        case NotSaved(steps, reason, worker, remedy):
            seat = state.seats.get(worker)
            if seat is None or seat.cell not in state.live:
                return False  # of a cell that is no more: those who live save the same state
            state.unsaved = reason
            if (remedy or reason) != state.saving:  # the same trouble is told once, however often it is met
                what = {"step": steps, "reason": reason, "remedy": remedy}
                remember(state, event, "checkpoint_failed", worker, what, actions)
            state.saving = remedy or reason
            if state.halt is not None and steps >= state.committed:
                end_unsaved(state, reason, actions)
        case Finished(worker, generation):
            mode = state.mode
            if generation == state.generation and isinstance(mode, Running | Pausing):
                return through(state, mode, worker, actions)
        case Noted(worker, _, step, "profile", fields):  # of any cell
            actions.append(Journal("profile", {"actor": worker, "step": step, **fields}))
        case Noted(worker, generation, step, kind, fields):
            seat = state.seats.get(worker)
            if generation == state.generation and seat is not None and seat.cell in state.live[:1]:
                remember(state, event, kind, worker, {"step": step, **fields, "cell": seat.cell}, actions)
    return False


def settle(state: State, actions: list[Action]) -> None:
    """Do all that the state now allows."""
    cells = state.cells
    if isinstance(state.mode, Gathering) and not (cells.any("forming") or cells.any("ready")):
        form_first_again(state, state.mode, actions)
        cells = state.cells
    if state.halt is None:
        fill(state, actions)
    if isinstance(state.mode, Gathering) and not state.expected:
        if state.aside and not (cells.any("forming") or cells.any("ready") or cells.any("live")):
            state.aside, state.tally.strikes = frozenset(), {}  # a bad node is better than none
            fill(state, actions)
        fit_in(state, state.mode, actions)
        cells = state.cells
        if cells.any("ready") and not cells.any("forming"):
            begin_of(state, state.mode, cells.within("ready"), actions)
            if state.halt is None:
                fill(state, actions)
    if state.halt is None:
        assign_keepers(state, actions)  # before a pause: what is copied at its end goes to nodes that stay
        for what in (join, evict, consider):
            if isinstance(state.mode, Running):
                what(state, state.mode, actions)
    if isinstance(state.mode, Pausing | Stopping) and not state.mode.awaited:
        conclude(state, state.mode, actions)
        if isinstance(state.mode, Running):
            consider(state, state.mode, actions)
        elif isinstance(state.mode, Gathering) and not state.expected:
            fit_in(state, state.mode, actions)


def fit_in(state: State, mode: Gathering, actions: list[Action]) -> None:
    """Form cells of another shape if none of the present one can be."""
    formed = state.cells.any("forming") or state.cells.any("ready")
    if not formed and state.halt is None and fit(state, mode, actions):
        form_first_again(state, mode, actions)
        fill(state, actions)


def exhaust(state: State, actions: list[Action]) -> None:
    """End a run that gets nowhere."""
    if reason := bounds.exhausted(state):
        give_up(state, reason, actions)


# ---- the parts of a worker's life


def joined(state: State, event: Joined, actions: list[Action]) -> bool:
    """A warm worker. Its cell is formed when the others that are planned for it are here."""
    if event.pid is not None:
        where = {"actor": event.worker, "node": event.node, "pid": event.pid, "device": event.device or None}
        actions.append(Journal("worker_ready", where))
    state.heard(event.worker)
    state.tally.unborn.pop(event.node, None)
    state.coming.pop(event.node, None)
    state.enter(event.worker, Worker(event.node, event.home, state.now))
    return event.home is None or not state.arriving[event.home.cell]


def answered(state: State, event: Acked, actions: list[Action]) -> bool:
    """A worker of the generation takes no part in it any more."""
    if isinstance(state.mode, Running):
        stop(state, f"{event.worker} was stopped by a controller before this one", actions)
    mode = state.mode
    if isinstance(mode, Pausing | Stopping):
        acked(state, mode, event.worker, event.ack, actions)
    return not state.awaited


def failed(state: State, event: Failed, actions: list[Action]) -> bool:
    """A worker that lives cannot go on."""
    if event.trace:
        where = {"step": state.committed, "samples": state.shape.samples(state.committed), "trace": event.trace}
        remember(state, event, "error", event.worker, where, actions)
    if event.where in ("device", "memory"):
        return device_failed(state, event, actions)
    seat = state.seats.get(event.worker)
    current = event.generation == state.generation
    why = f"{event.worker}: {event.message}"
    damaged, mode = event.damaged, state.mode
    if damaged is not None and damaged.steps == state.checkpoint and isinstance(mode, Gathering):
        if not mode.damaged:
            mode.damaged = True
            actions.append(SetAside(damaged.steps, damaged.reason))
    elif state.halt is not None and not isinstance(state.mode, Pausing | Stopping):
        if current or (event.where == "form" and seat is not None):
            end(state, actions)
    elif event.where == "code":
        if seat is not None and seat.cell in state.live:
            state.halt = state.halt or Halt(why)
            damage(state, seat.cell, why, actions)  # its peers may wait for it inside a collective
        else:
            give_up(state, why, actions)
    elif seat is None:
        return left_successor(state, event)
    elif event.where == "form":
        cell = state.cells[seat.cell]
        if cell.phase != "forming" or cell.attempt != event.attempt:
            return False
        not_formed(state, seat.cell, event.worker, event.message, actions)
    elif current and seat.cell in state.live:
        stop(state, why, actions, broken=seat.cell if event.where == "cell" else None)
        return False
    return True


def device_failed(state: State, event: Failed, actions: list[Action]) -> bool:
    """A worker's process ends by itself: its death is healed, and counts against its node. Unless it is the job that
    does not fit."""
    worker = state.workers.get(event.worker)
    if worker is None:
        return False
    what = {"node": worker.node, "step": state.committed, "what": event.where, "message": event.message}
    remember(state, event, "device_failed", event.worker, what, actions)
    if event.where == "memory" and (reason := bounds.out_of_memory(state, worker.node, event.message)):
        give_up(state, reason, actions)
        return True
    return False


def left_successor(state: State, event: Failed) -> bool:
    """A worker without a seat failed: the successor that it was part of, if any, is none any more."""
    if any(cell.attempt == event.attempt and event.worker in cell.members for cell in state.successors.values()):
        state.disband(event.worker)
        return True
    return False


def through(state: State, mode: Running | Pausing, worker: str, actions: list[Action]) -> bool:
    """A worker has committed all steps. The run is over when all have, unless its last steps were no numbers."""
    if state.tally.not_finite:
        give_up(state, diverged(state.tally.not_finite), actions)
        return True
    mode.finished.add(worker)
    if len(mode.finished) == len(mode.live) * state.shape.workers:
        finish(state, actions)
    return False


def remember(
    state: State, word: Word, kind: str, worker: str, fields: Mapping[str, Any], actions: list[Action]
) -> None:
    """Have a worker's word put into the journal with its number, unless it stands there: a controller that takes over
    from this one hears it again."""
    if word.number < 0 or word.number > state.told.get(worker, -1):
        actions.append(Journal(kind, {**fields, "actor": worker, "seq": word.number}))
