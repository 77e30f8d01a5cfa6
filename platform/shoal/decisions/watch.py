"""A look at the clock: who is silent for too long, who holds a step or a stop up, whether anything moves at all. Pure.

A worker is judged by what was heard of it: who is silent is fenced for its silence alone, since it may have gone on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.decisions.actions import Action, Fence, Journal, Release
from shoal.decisions.events import Asked, Looked, Sign
from shoal.decisions.formation import not_formed, stand_still
from shoal.decisions.leaving import lose, unborn
from shoal.decisions.modes import Gathering, Pausing, Running, Stopping
from shoal.decisions.state import State
from shoal.protocol.said import Phase

__all__ = ["look"]


def look(state: State, event: Looked, actions: list[Action]) -> bool:
    """Fence who is to be taken for dead, give up who never spoke, form again what stands still. True if anything was
    done that may allow something new."""
    before = len(actions)
    dog = state.watchdog
    state.now = event.now
    dog.look(event.gap)
    dog.moved = event.now if dog.moved is None else dog.moved
    if isinstance(state.mode, Stopping):
        state.mode.since = event.now if state.mode.since is None else state.mode.since + event.late
    for asked in event.asked:
        never_spoke(state, asked, actions)
    fenced = to_fence(state, event.signs)
    actions.extend(Fence(worker, why) for worker, why in fenced.items())
    stand(state, {sign.worker: sign for sign in event.signs if sign.worker not in fenced}, event.now, actions)
    return len(actions) > before


def never_spoke(state: State, asked: Asked, actions: list[Action]) -> None:
    """Give up a worker that was asked for and will not come."""
    limit = state.watchdog.timeouts.start
    if not asked.there:
        why = f"{asked.node} is gone"
        actions.append(Release((asked.worker,)))
        actions.append(Journal("not_started", {"actor": asked.worker, "node": asked.node, "how": why, "trace": None}))
        lose(state, asked.worker, why, actions)
    elif asked.seconds > limit:
        unborn(state, asked.worker, asked.node, f"it did not start within {limit:.0f} s", "", actions)


def to_fence(state: State, signs: Iterable[Sign]) -> dict[str, str]:
    """Workers to be taken for dead -> why."""
    dog, mode = state.watchdog, state.mode
    signs = list(signs)
    silences = sorted(sign.silent for sign in signs)
    usual = silences[len(silences) // 4] if silences else 0.0
    limits = {phase: dog.silence(phase, usual) for phase in Phase}
    stuck = dog.stuck()
    across = {sign.steps for sign in signs if sign.phase is Phase.ACROSS}
    asked = mode.since if isinstance(mode, Stopping) else None
    found: dict[str, str] = {}
    for worker, phase, steps, heard, since, silent in signs:
        if silent > limits[phase]:
            found[worker] = f"silent for {silent:.1f} s"
        elif asked is not None and heard - asked > stuck and worker in state.awaited:
            found[worker] = f"did not answer a stop within {heard - asked:.1f} s"
        elif phase is Phase.INSIDE and heard - since > stuck and steps in across:
            found[worker] = f"computed on one step for {heard - since:.1f} s while others waited"
    return found


def stand(state: State, signs: Mapping[str, Sign], now: float, actions: list[Action]) -> None:
    """Notice that nothing moves: in the run, or in a cell that is formed while others train."""
    cells = state.cells
    if isinstance(state.mode, Gathering):
        if idle := all_idle(state, state.members(cells.within("forming")), signs, now):
            stand_still(state, f"no cell was formed: {idle}", actions)
    elif isinstance(state.mode, Running | Pausing):  # who owes an answer to a stop is fenced for it
        if idle := all_idle(state, state.members(), signs, now):
            stand_still(state, f"step {state.committed} was not committed: {idle}", actions)
        for index in cells.within("forming"):
            if idle := all_idle(state, cells[index].people(), signs, now):
                not_formed(state, index, cells[index].people()[0], idle, actions)
        for cell in list(state.successors.values()):
            if cell.phase == "forming" and all_idle(state, cell.people(), signs, now):
                state.disband(cell.people()[0])


def all_idle(state: State, workers: Iterable[str], signs: Mapping[str, Sign], now: float) -> str:
    """That all of these workers have done the same for too long, in words; "" if they have not."""
    dog = state.watchdog
    assert dog.moved is not None
    since, heard, phases = dog.moved, now, set()
    for sign in (signs[worker] for worker in workers if worker in signs):
        since, heard = max(since, sign.since), min(heard, sign.heard)
        if heard - since <= dog.timeouts.patience:
            return ""  # no limit is shorter
        phases.add(sign.phase)
    if not phases or heard - since <= dog.still(phases):
        return ""
    dog.moved = now
    return f"all workers were {' or '.join(sorted(phases))} for {heard - since:.0f} s"
