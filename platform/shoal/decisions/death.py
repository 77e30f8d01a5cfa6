"""Workers that are no more: what they were part of, and what becomes of it. Pure."""

from __future__ import annotations

from shoal.decisions import bounds
from shoal.decisions.actions import Action, Death, Journal, Release
from shoal.decisions.drain import damage
from shoal.decisions.events import Lost
from shoal.decisions.halt import end
from shoal.decisions.modes import Draining, Gathering, Pausing, Running
from shoal.decisions.state import State

__all__ = ["died", "lose", "unborn"]


def died(state: State, event: Lost, actions: list[Action]) -> None:
    """A worker that was there is dead: tell, then do without it."""
    seat = state.seats.get(event.worker)
    live = seat is not None and state.cells[seat.cell].phase == "live"
    actions.append(Death(event.worker, event.node, event.pid, event.how, event.alive, seat, state.committed, live=live))
    lose(state, event.worker, event.how, actions)


def unborn(state: State, worker: str, node: str, why: str, trace: str, actions: list[Action]) -> None:
    """A worker that was asked for cannot start."""
    actions.append(Release((worker,)))
    actions.append(Journal("not_started", {"actor": worker, "node": node, "how": why, "trace": trace or None}))
    lose(state, worker, why, actions)
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
