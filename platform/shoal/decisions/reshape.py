"""Cells take another shape, when that uses more of the workers that live: at a step boundary, from memory. Pure.

The generation is paused (`consider`); when all have answered, cells of the new shape are formed of everybody
(`reshape`), and fill their shards from what the members of the former one hold. These keep it until they have joined a
generation of the new shape: if that does not come about, the run goes back to the former one (`go_back`), or fills
cells of one more shape from what is held of both (`piece`). A run that waits because too few live for one of its cells
takes a shape that has cells for them (`fit`). Which shape is a matter of `plan.reshape`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
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

__all__ = ["consider", "enough", "fit", "go_back", "is_due", "piece", "reshape"]


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
    return state.generation, state.changes, len(state.going), len(state.aside), len(state.coming)


def is_calm(state: State, mode: Running) -> bool:
    """Whether nothing else is to be done first: no cell is formed, leaves nodes that go, or is through, and no worker
    is started in the place of one whose process died."""
    cells = state.cells
    moves = not all(state.going.values()) or seated_on(state, state.going)
    unsettled = cells.any("forming") or cells.any("ready") or state.successors or moves or mode.finished or state.coming
    return not unsettled and state.committed < state.shape.steps


def chosen(state: State, live: Sequence[int], held: Mapping[str, int] | None = None) -> Choice | Stay:
    """What the living would do best, if the cells `live` hold the state of the present shape. Without a live cell it is
    had from elsewhere; `held`: who has which shard of the present shape then."""
    shape = state.shape
    assert shape.choose is not None
    ranks = dict(held or {})
    ranks |= {worker: rank for cell in live for rank, worker in enumerate(state.cells[cell].people())}
    living = {
        name: Survivor(worker.node, ranks.get(name), state.now - worker.since)
        for name, worker in state.workers.items()
        if state.may_be_used(worker.node)
    }
    present = Present(shape.mesh, len(live), len(live) < shape.cells, seen(state))
    return shape.choose(living, present, min(state.committed, shape.steps - 1))


def seen(state: State) -> Seen:
    """What the run knows by now of what things take."""
    copies, times = newer_copies(state), state.watchdog.seconds
    saved = state.checkpoint if copies is None else copies.steps
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
    before, ended, crew = state.shape, state.generation, state.crew(live)
    held = {worker: rank for cell in live for rank, worker in enumerate(state.cells[cell].people())}
    form_all(state, found, (Former(before, state.committed, held, state.copies),), actions)
    if out := tuple(worker for worker in crew if worker not in state.seats):
        actions.append(Stop(ended, tuple(live), out, state.known, before.number))  # they leave their cells' worlds
    tell(state, found, (len(live), before.workers), len(found.crews), actions)
    return True


def piece(state: State, mode: Gathering, actions: list[Action]) -> bool:
    """Form cells of whatever shape fits, filled from what the living hold of several: of none of these they hold all.
    False if nobody has anything of a shape before the present one, or if it was tried with what these have, and failed:
    then some range is nobody's."""
    known = parts(state, mode)
    former = any(part.held and part.steps == state.committed for part in state.formers)
    if state.shape.choose is None or not former or (mode.tried and mode.tried <= state.workers.keys()):
        return False
    found = chosen(state, (), mode.held)
    if isinstance(found, Stay):
        return False
    before = state.shape
    form_all(state, found, known, actions)
    tell(state, found, (0, before.workers), len(found.crews), actions, paused=False)
    return True


def fit(state: State, mode: Gathering, actions: list[Action]) -> bool:
    """Take a shape that has a cell for those who live, if there have been too few for one of the present shape for
    `hold` seconds. False if none is taken."""
    busy = state.expected or mode.damaged or mode.combines or mode.filled is not None
    if state.shape.choose is None or busy or enough(state, state.shape):
        mode.since = None
        return False
    mode.since = state.now if mode.since is None else mode.since
    if state.now - mode.since < state.shape.hold or not is_due(state):
        return False
    state.considered = Considered(known(state))
    found = chosen(state, ())
    if isinstance(found, Stay):
        again = inf if found.again is None else state.now + found.again
        state.considered = Considered(known(state), again)
        return False
    state.generation += 1
    before, cells = state.shape, len(found.crews)
    become(state, before.reshaped(unused(state), found.mesh, cells), parts(state, mode))
    mode.since = None
    tell(state, found, (0, before.workers), cells, actions, paused=False)
    return True


def enough(state: State, shape: Shape) -> bool:
    """Whether there are workers for a cell of a shape."""
    return sum(state.may_be_used(worker.node) for worker in state.workers.values()) >= shape.workers


# ---- the shapes that a run has shards of


def parts(state: State, mode: Gathering) -> tuple[Former, ...]:
    """What is held of the present shape, and of those before it."""
    return Former(state.shape, state.committed, mode.held, state.copies), *state.formers


def form_all(state: State, found: Choice, known: tuple[Former, ...], actions: list[Action]) -> None:
    """Form cells of another shape, to be filled from what is held of those that are `known`."""
    state.generation += 1  # nothing that is still said of the one that ended counts any more
    become(state, state.shape.reshaped(unused(state), found.mesh, len(found.crews)), known)
    held = {former.shape.number: former for former in state.formers if former.held and former.steps == state.committed}
    tried = frozenset(worker for former in held.values() for worker in former.held)
    state.mode, state.watchdog.moved = Gathering(filled={}, tried=tried), None
    refill = Refill(state.committed, {number: former.holders() for number, former in held.items()})
    for index, members in enumerate(found.crews):
        state.put(index, members, "forming")
        attempt, number = state.cells[index].attempt, state.shape.number
        actions.append(Form(index, attempt, members, shape=number, refill=refill))


def tell(
    state: State, found: Choice, was: tuple[int, int], cells: int, actions: list[Action], *, paused: bool = True
) -> None:
    """That the run takes another shape; it `was` (cells, workers of each)."""
    actions.append(Decision(Rung.RESHAPE, tuple(range(cells)), found.why))
    now = cells, state.shape.workers
    expected = found.seconds + found.steps, found.steps, found.bytes
    actions.append(Reshaped(was, now, found.why, found.idle, state.shape.cells, expected, paused))


def become(state: State, shape: Shape, known: tuple[Former, ...]) -> None:
    """All cells are of this shape from now on, and empty; of those that are `known` what somebody has is remembered. No
    formation gets a name that another had."""
    clear_all(state)
    newest = unused(state)
    same = next((former for former in known if former.shape.number == shape.number), None)
    state.formers = tuple(one for one in known if one is not same and (one.held or one.copies.held))
    state.copies = Copies(era=state.copies.era) if same is None else same.copies
    state.copies.keepers = {}
    state.shape, state.homes, state.stragglers = shape, {}, Stragglers()
    state.cells = Cells([Cell((None,) * shape.workers, "empty", newest, newest)] * shape.cells)


def unused(state: State) -> int:
    """A number that no formation and no shape has had, whatever controllers there were (`readopt.AHEAD`)."""
    return max(cell.named for cell in state.cells) + 1


def go_back(state: State, mode: Gathering, former: Former) -> None:
    """The cells are to be of a former shape again."""
    become(state, former.shape, parts(state, mode))
    mode.held = former.held if former.steps == state.committed else {}
