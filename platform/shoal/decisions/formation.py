"""Cells that are formed: who stands, what fails, and what comes of a run in which nothing moves. Pure."""

from __future__ import annotations

from shoal.decisions.actions import Action, Journal
from shoal.decisions.halt import end_unsaved
from shoal.decisions.leaving import stop
from shoal.decisions.modes import Gathering
from shoal.decisions.state import State

__all__ = ["not_formed", "ready", "stand_still"]


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
        stop(state, reason, actions)


def not_formed(state: State, index: int, worker: str | None, reason: str, actions: list[Action]) -> None:
    """A cell's world did not come up: it is formed again, under another name."""
    fields = {"cell": index, "attempt": state.cells[index].attempt, "actor": worker, "reason": reason}
    actions.append(Journal("formation_failed", fields))
    state.tally.fruitless += 1
    state.tally.cause = reason
    state.empty(index)


def ready(state: State, worker: str, index: int, attempt: int, held: int = 0) -> bool:
    """A worker stands in its cell's new world, with a shard of so many bytes. True if it was the last one. A cell of
    this number there may be no more: it was of another shape."""
    if index >= len(state.cells):
        return False
    cell, successor = state.cells[index], state.successors.get(index)
    if cell.phase == "forming" and cell.attempt == attempt:
        state.cells[index] = cell = cell.with_ready(worker)
        state.seen = state.seen.held(held, state.shape.workers)
        if isinstance(state.mode, Gathering) and state.mode.filled is not None:
            state.mode.filled[worker] = cell.members.index(worker)
        return cell.phase == "ready"
    if successor is not None and successor.attempt == attempt:
        state.successors[index] = successor = successor.with_ready(worker)
        return successor.phase == "ready"
    return False
