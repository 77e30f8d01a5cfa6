"""Cells take another shape, when that uses more of the workers that live: at a step boundary, from memory. Pure.

The generation is paused (`consider`); when all have answered, cells of the new shape are formed of everybody
(`reshape`), and fill their shards from what the members of the former one hold. These keep it until they have joined a
generation of the new shape: if that does not come about, the run goes back to the former one (`go_back`). Which shape
is a matter of `plan.reshape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from shoal.decisions.actions import Action, Decision, Form, Refill, Reshaped, Stop
from shoal.decisions.cells import Cell, Cells
from shoal.decisions.copies import Copies
from shoal.decisions.leaving import pause
from shoal.decisions.modes import Gathering, Running
from shoal.decisions.recall import newer_copies
from shoal.decisions.seating import clear_all, seated_on
from shoal.decisions.shape import Shape
from shoal.decisions.state import Considered, Former, State
from shoal.decisions.stragglers import Stragglers
from shoal.ladder import Rung
from shoal.plan.reshape import Choice, Present, Seen, Stay, Survivor

__all__ = ["consider", "go_back", "is_due", "reshape"]


def consider(state: State, mode: Running, actions: list[Action]) -> None:
    """Pause for another shape, if there is one that is worth it. Asked for when something has changed, and when it is
    time to."""
    if not is_due(state) or not is_calm(state, mode):
        return
    state.considered = Considered(known(state))
    found = chosen(state, mode.live)
    if isinstance(found, Choice):
        pause(state, mode, "another shape does more", (), actions, reshapes=True)
    elif found.again is not None:
        state.considered = Considered(known(state), state.now + found.again)


def is_due(state: State) -> bool:
    """Whether another shape is to be asked for."""
    last = state.considered
    return state.shape.choose is not None and (known(state) != last.known or state.now >= last.again)


def known(state: State) -> tuple[int, ...]:
    """What the answer hangs on: it changes whenever that does."""
    return state.generation, state.changes, len(state.going), len(state.aside)


def is_calm(state: State, mode: Running) -> bool:
    """Whether nothing else is to be done first: no cell is formed, leaves nodes that go, or is through."""
    cells = state.cells
    moves = not all(state.going.values()) or seated_on(state, state.going)
    unsettled = cells.any("forming") or cells.any("ready") or state.successors or moves or mode.finished
    return not unsettled and state.committed < state.shape.steps


def chosen(state: State, live: Sequence[int]) -> Choice | Stay:
    """What the living would do best, if the cells `live` hold the state of the present shape."""
    shape = state.shape
    assert shape.choose is not None
    ranks = {worker: rank for cell in live for rank, worker in enumerate(state.cells[cell].members)}
    living = {
        name: Survivor(worker.node, ranks.get(name), state.now - worker.since)
        for name, worker in state.workers.items()
        if state.may_be_used(worker.node)
    }
    present = Present(shape.mesh, len(live), len(live) < shape.cells, seen(state))
    return shape.choose(living, present, state.committed)


def seen(state: State) -> Seen:
    """What the run knows by now of what things take."""
    copies, times = newer_copies(state), state.watchdog.seconds
    saved = state.checkpoint if copies is None else copies[0]
    return replace(
        state.seen,
        failures=state.tally.failures,
        seconds=state.now - state.seen.since,
        step=median(times) if times else 0.0,
        behind=max(0, state.committed - saved),
    )


def reshape(state: State, live: Sequence[int], actions: list[Action]) -> bool:
    """Form cells of another shape: all of `live` stand at the committed step, and nobody is in a generation. False if
    there is no such shape any more."""
    found = chosen(state, live)
    if isinstance(found, Stay):
        return False
    before, ended = state.shape, state.generation
    crew = state.crew(live)
    holders = tuple(zip(*(state.cells[cell].people() for cell in live), strict=True))
    held = {worker: rank for rank, workers in enumerate(holders) for worker in workers}
    state.generation += 1  # nothing that is still said of the one that ended counts any more
    state.former = Former(before, state.committed, held, state.copies)
    state.copies = Copies(era=state.generation, twofold=state.committed)
    take(state, before.reshaped(state.generation, found.mesh, len(found.crews)))
    state.mode, state.watchdog.moved = Gathering(filled={}), None
    refill = Refill(before.number, state.committed, holders)
    for index, members in enumerate(found.crews):
        state.put(index, members, "forming")
        attempt, number = state.cells[index].attempt, state.shape.number
        actions.append(Form(index, attempt, members, shape=number, refill=refill))
    if out := tuple(worker for worker in crew if worker not in state.seats):
        actions.append(Stop(ended, tuple(live), out, state.known, before.number))  # they leave their cells' worlds
    actions.append(Decision(Rung.RESHAPE, tuple(range(len(found.crews))), found.why))
    was, now = (len(live), before.workers), (len(found.crews), state.shape.workers)
    expected = found.seconds + found.steps, found.steps, found.bytes
    actions.append(Reshaped(was, now, found.why, found.idle, state.shape.cells, expected))
    return True


def take(state: State, shape: Shape) -> None:
    """All cells are of another shape from now on, and empty. No formation gets a name that another had."""
    clear_all(state)
    newest = max(cell.named for cell in state.cells) + 1
    state.shape, state.homes, state.stragglers = shape, {}, Stragglers()
    state.cells = Cells([Cell((None,) * shape.workers, "empty", newest, newest)] * shape.cells)


def go_back(state: State) -> Gathering:
    """The cells are to be of the former shape again."""
    former = state.former
    assert former is not None
    take(state, former.shape)
    state.copies, state.former = former.copies, None
    state.copies.apart(former.steps)
    state.mode = mode = Gathering(former.held if former.steps == state.committed else {})
    return mode
