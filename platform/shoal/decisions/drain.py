"""A generation is told to end, at once or at the next boundary that all agree on; who answers, and what is still
committed in it. Pure.

It is over when nobody alive owes an answer; what comes then is decided in `conclude`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoal.decisions.actions import Action, CommitLate, Journal, Leaves, Pause, Stop
from shoal.decisions.modes import Draining, Pausing, Running
from shoal.decisions.state import State
from shoal.protocol.said import Ack

__all__ = ["acked", "commit_late", "damage", "drain", "leaves", "pause"]


def drain(state: State, reason: str, actions: list[Action], broken: int | None = None) -> None:
    """End the current generation, once; a pause is cut short. `broken`: a live cell whose world is unusable."""
    state.tally.cause, mode = reason, state.mode
    fresh = frozenset(() if broken is None else (broken,))
    match mode:
        case Running(live):
            state.mode = ends = Draining(live, broken=fresh)
            actions.append(Journal("drain", {"generation": state.generation, "reason": reason}))
            stop(state, ends, state.crew(), actions)
        case Pausing(live, _, leaving, awaited, acks):
            state.mode = ends = Draining(live, leaving, fresh, awaited, acks)
            stop(state, ends, state.crew(), actions)
        case Draining() if not fresh <= mode.broken:
            mode.broken |= fresh
            stop(state, mode, state.crew(fresh), actions)


def damage(state: State, cell: int, reason: str, actions: list[Action]) -> None:
    """A cell's world is unusable: its members must leave it, whatever they answered before."""
    if cell in state.live:
        drain(state, reason, actions, broken=cell)


def stop(state: State, mode: Draining, workers: Sequence[str], actions: list[Action]) -> None:
    """Tell these workers; only those must answer (again) who have not, or whose answer does not do any more."""
    for worker in workers:
        ack = mode.acks.get(worker)
        if ack is None or not will_do(state, mode, worker, ack):
            mode.awaited.add(worker)
    mode.since = None
    actions.append(Stop(state.generation, tuple(sorted(mode.broken)), tuple(workers), state.known))


def will_do(state: State, mode: Pausing | Draining, worker: str, ack: Ack) -> bool:
    """Whether an answer is enough: members of a broken cell must have left it, or have nothing more to do in it."""
    broken = mode.broken if isinstance(mode, Draining) else ()
    return state.seats[worker].cell not in broken or ack.out or ack.whole


def pause(state: State, mode: Running, reason: str, leaving: Iterable[int], actions: list[Action]) -> None:
    """End the generation in order, at the next step boundary, and the cells `leaving` with it."""
    crew = tuple(state.crew())
    state.mode = Pausing(mode.live, mode.finished, frozenset(leaving), set(crew))
    actions.append(Journal("drain", {"generation": state.generation, "reason": reason}))
    actions.append(Pause(state.generation, crew))
    actions += [leaves(state, cell) for cell in sorted(state.mode.leaving)]


def leaves(state: State, cell: int) -> Leaves:
    """That a live cell is to leave those of its nodes that will be taken away."""
    nodes = {state.workers[worker].node for worker in state.members([cell])}
    return Leaves(cell, tuple(sorted(nodes & state.going.keys())))


def acked(state: State, mode: Pausing | Draining, worker: str, ack: Ack, actions: list[Action]) -> None:
    """A living worker has answered; what it committed is committed."""
    mode.acks[worker] = ack
    if worker in state.seats and will_do(state, mode, worker, ack):
        mode.awaited.discard(worker)
    news = ack.steps > state.committed
    state.committed = max(state.committed, ack.steps)
    commit_late(state, list(mode.acks) if news else [worker], actions)


def commit_late(state: State, workers: Iterable[str], actions: list[Action]) -> None:
    """Who has answered from behind a committed step commits it at once, and answers again: a peer of its cell may have
    gone on and wait for it inside the next step, where nothing can be said to it."""
    mode = state.mode
    if not isinstance(mode, Pausing | Draining):
        return
    behind = [w for w in workers if 0 <= mode.acks[w].steps < state.committed and not mode.acks[w].out]
    if behind:
        for worker in behind:
            del mode.acks[worker]
        mode.awaited |= set(behind)
        if isinstance(mode, Draining):
            mode.since = None
        actions.append(CommitLate(state.generation, state.committed, tuple(behind), state.newest))
