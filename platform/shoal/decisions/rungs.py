"""The end of a generation and the beginning of the next: what is committed, who goes on, and by which rung. Pure; the
rungs' words stand in `shoal.ladder`.

Decided only when every living worker has answered (`conclude`). The rule: if anyone committed a step, everyone alive
commits it (docs/commit-protocol.md). While a cell is whole the run goes on with those that are (`go_on`: drain, retry,
heal, shrink; a cell that comes later makes it grow). When none is, it takes the first of `WITHOUT_A_CELL` that can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from shoal import batching
from shoal.decisions import bounds
from shoal.decisions.actions import Action, Decision, Generation, Rewind
from shoal.decisions.cells import Formation
from shoal.decisions.commits import put_on_record
from shoal.decisions.halt import end
from shoal.decisions.modes import Gathering, Halt, Pausing, Running, Stopping
from shoal.decisions.recall import form_recalled, newer_copies
from shoal.decisions.reshape import enough, go_back, piece, reshape
from shoal.decisions.seating import combine, fill, holders, movable, release
from shoal.decisions.state import Left, State
from shoal.ladder import Rung

__all__ = ["begin_of", "conclude", "descend", "form_first_again"]


def conclude(state: State, mode: Pausing | Stopping, actions: list[Action]) -> None:
    """Nobody alive owes an answer: end the generation `mode`."""
    steps = state.committed
    put_on_record(state, None, actions)
    state.evaluated = max([state.evaluated, *(ack.evaluated for ack in mode.acks.values())])
    broken = mode.broken if isinstance(mode, Stopping) else frozenset()
    healthy = [c for c in mode.live if c not in broken]
    whole = [c for c in healthy if all(mode.acks[w].steps == steps for w in state.crew([c]))]
    if not whole:
        start_over(state, mode, actions)
    elif state.halt is None:
        if not (may_reshape(mode, whole) and reshape(state, mode.live, actions)):
            go_on(state, mode, whole, actions)
    elif state.checkpoint < steps:
        begin(state, whole[:1], {}, actions)  # it saves, and halts
    else:
        end(state, actions)


def may_reshape(mode: Pausing | Stopping, whole: Sequence[int]) -> bool:
    """Whether the generation was paused for another shape, and all of it is there."""
    return isinstance(mode, Pausing) and mode.reshapes and len(whole) == len(mode.live)


def start_over(state: State, mode: Pausing | Stopping, actions: list[Action]) -> None:
    """No cell is whole any more: go on from what living workers still hold, else from copies or a checkpoint."""
    held = {
        worker: ack.rank
        for worker, ack in mode.acks.items()
        if ack.rank >= 0 and ack.steps == state.committed and worker not in state.tainted
    }
    held |= state.left.of(state.committed, state.shape.number)
    state.left = Left(state.committed, state.shape.number, dict(held))  # whoever gets no seat keeps its shard
    for former in state.formers:
        for worker in [w for w, ack in mode.acks.items() if not ack.former]:
            former.held.pop(worker, None)  # it has joined the generation that ended
    state.mode = gathering = Gathering(held)
    state.successors = {}
    state.generation += 1  # nothing that is still said of the one that ended counts any more
    state.tally.fruitless += 1
    descend(state, gathering, actions)


# ---- the next generation


def begin(
    state: State,
    cells: Sequence[int],
    done: Mapping[int, tuple[int, ...]],
    actions: list[Action],
    whole: Sequence[int] | None = None,
) -> None:
    """A new generation of `cells`; those not in `whole` (by default the first alone) are healed from those that are.
    `done`: micro-batches of the pending step that cells have accumulated."""
    whole = [cells[0]] if whole is None else whole
    if state.committed < state.shape.steps:
        todo = batching.rest(state.shape.micro_batches(state.committed, state.shape.workers), cells, done)
    else:
        todo = {c: [] for c in cells}
    state.generation += 1
    state.mode, state.watchdog.moved = Running(tuple(cells)), None
    state.tally.deaths = (0, 0)
    state.tally.fruitless += 1
    for c in cells:
        state.cells[c] = replace(state.cells[c], phase="live", ready=frozenset())
    members = {c: tuple(state.cells[c].people()) for c in cells}
    for worker in (worker for crew in members.values() for worker in crew):
        state.tainted.discard(worker)
        state.left.held.pop(worker, None)  # it has its state by what it answers from now on
    halts = state.halt is not None
    actions.append(
        Generation(
            state.generation,
            members,
            {c: state.cells[c].attempt for c in cells},
            state.committed,
            state.evaluated,
            todo,
            heals(cells, whole),
            save=halts or last_one_goes(state, whole, members),
            halt=halts,
        )
    )


def begin_of(state: State, mode: Gathering, ready: Sequence[int], actions: list[Action]) -> None:
    """The first generation of cells that are `ready`: all are whole that were filled from those of another shape. Of a
    run that was given up one is enough."""
    cells = ready if state.halt is None else ready[:1]
    begin(state, cells, {}, actions, None if mode.filled is None else cells)


def heals(cells: Sequence[int], whole: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(from, to) for each of `cells` that is not whole, the whole ones in turn."""
    needy = sorted(set(cells) - set(whole))
    return tuple((whole[i % len(whole)], cell) for i, cell in enumerate(needy))


def last_one_goes(state: State, whole: Sequence[int], members: Mapping[int, tuple[str, ...]]) -> bool:
    """Whether the only whole cell stands on nodes that will be taken away: what it holds must outlive it."""
    return len(whole) == 1 and any(state.workers[m].node in state.going for m in members[whole[0]])


# ---- while a cell is whole


def go_on(state: State, mode: Pausing | Stopping, whole: Sequence[int], actions: list[Action]) -> None:
    """The next generation: of the whole cells but those that leave, of those that stand ready to join, and of healthy
    ones that are behind (never healed), as far as they are."""
    broken = mode.broken if isinstance(mode, Stopping) else frozenset()
    healthy = set(mode.live) - broken
    leaving = mode.leaving & set(movable(state)) & healthy
    if leaving >= set(whole):
        leaving -= {min(whole)}
    stay = [c for c in whole if c not in leaving]
    done = {c: mode.acks[state.crew([c])[0]].done for c in stay}
    state.left = left_by(state, mode, broken)
    for index in sorted(broken | leaving):
        state.empty(index)
    joining = state.cells.within("ready")
    behind = healthy - set(whole) - leaving
    begin(state, sorted([*stay, *behind, *joining]), done, actions, stay)
    fill(state, actions)
    release(state, actions)
    actions += broken_decisions(state, sorted(broken))
    if leaving:
        reason = f"moved off nodes that will be taken away, {destination({state.cells[c].phase for c in leaving})}"
        actions.append(Decision(Rung.DRAIN, tuple(sorted(leaving)), reason))
    elif broken or joining:
        pass
    elif state.going:
        reason = "no other copy could take over: the state is saved before the node goes"
        actions.append(Decision(Rung.DRAIN, tuple(whole), reason))
    else:
        actions.append(Decision(Rung.RETRY, tuple(whole), "nobody died: same step again"))


def left_by(state: State, mode: Pausing | Stopping, broken: Set[int]) -> Left:
    """What members of cells that broke keep now, in this generation and in those since the newest step."""
    steps, number = state.committed, state.shape.number
    found = {worker: ack.rank for worker in state.crew(broken) if (ack := mode.acks[worker]).steps == steps}
    found = {worker: rank for worker, rank in found.items() if rank >= 0 and worker not in state.tainted}
    return Left(steps, number, {**state.left.of(steps, number), **found})


def broken_decisions(state: State, broken: Sequence[int]) -> list[Decision]:
    """What becomes of cells that broke: formed again if there are spares, else the run is smaller."""
    found = []
    for cell in broken:
        if state.cells[cell].phase == "empty":
            reason = (
                f"no spare for cell {cell}: the other cells take its micro-batches, its living workers are spares now"
            )
            found.append(Decision(Rung.SHRINK, (cell,), reason))
        else:
            reason = f"cell {cell} is formed again from its living members and spares; the other cells go on"
            found.append(Decision(Rung.HEAL, (cell,), reason))
    return found


def destination(phases: Set[Formation]) -> str:
    """Of cells that have left their nodes, by what they are now."""
    if "empty" in phases:
        return "to be formed again once there is room"
    return "to be formed again on other nodes" if "forming" in phases else "to others that stood ready"


# ---- when none is


@dataclass(frozen=True)
class Way:
    """How to go on without a whole cell. `take`: do so if it can be done, and say whether; `keeps`: nothing is taken
    back."""

    rung: Rung
    take: Callable[[State, Gathering, list[Action]], bool]
    keeps: bool = False


def descend(state: State, mode: Gathering, actions: list[Action], below: Rung | None = None) -> None:
    """Take the first rung that can be taken, of all or of those below one. A run that was given up does not go back:
    what is saved is saved."""
    ways = WITHOUT_A_CELL
    if below is not None:
        ways = ways[1 + [way.rung for way in ways].index(below) :]
    for way in ways:
        if state.halt is not None and not way.keeps:
            end(state, actions)
            return
        if way.take(state, mode, actions):
            return


def form_first_again(state: State, mode: Gathering, actions: list[Action]) -> None:
    """The first cell fell apart while it was formed of what living workers hold, or all of another shape did: once more
    if it can be, else down."""
    if mode.filled is not None:
        mode.held, mode.filled = mode.filled, None
        descend(state, mode, actions)
    elif mode.combines and holders(state, mode):
        combine(state, mode, actions)
    elif mode.combines:
        mode.combines = False
        descend(state, mode, actions)
    elif mode.recalled is not None and newer_copies(state):
        form_recalled(state, mode, actions)
    elif mode.recalled is not None:
        descend(state, mode, actions, Rung.RECALL)


def take_combine(state: State, mode: Gathering, actions: list[Action]) -> bool:
    """One cell of workers that together still hold every shard at the committed step: of the present shape, or of one
    before it."""
    former = None
    if not holders(state, mode):
        former = next((one for one in state.formers if one.steps == state.committed and all(one.holders())), None)
        if former is None:
            return False
        go_back(state, mode, former)
    combine(state, mode, actions)
    reason = "no cell is whole, but together its workers hold every shard: put together, nothing is lost"
    if former is not None:
        reason = "cells of another shape did not come about: one of the former shape is put together, nothing is lost"
    actions.append(Decision(Rung.COMBINE, tuple(range(state.shape.cells)), reason))
    return True


def take_recall(state: State, mode: Gathering, actions: list[Action]) -> bool:
    """Back to the newest copies on other nodes."""
    found = newer_copies(state)
    if found is None:
        return False
    if spent(state, actions):
        return True
    where = f"the copies of step {found.steps} in the memory of other nodes"
    form_recalled(state, undo(state, mode, found.steps, Rung.RECALL, where, actions), actions)
    return True


def take_restore(state: State, mode: Gathering, actions: list[Action]) -> bool:
    """Back to the last checkpoint."""
    if spent(state, actions):
        return True
    where = f"the checkpoint of step {state.checkpoint}" if state.checkpoint else "the initial state"
    undo(state, mode, state.checkpoint, Rung.RESTORE, where, actions)
    for index in range(state.shape.cells):
        state.empty(index)
    fill(state, actions)
    return True


def spent(state: State, actions: list[Action]) -> bool:
    """Count that the run goes back to what was saved, or end it for that."""
    if reason := bounds.turned_back(state):
        state.halt = Halt(reason)
        end(state, actions)
    return state.halt is not None


def undo(state: State, mode: Gathering, steps: int, rung: Rung, where: str, actions: list[Action]) -> Gathering:
    """Take back what was committed from `steps` on; copies of it are of a history that is left. What was to be another
    shape is the former one again, if there are workers for it."""
    first = state.formers[-1] if state.formers else None
    if first is not None and (enough(state, first.shape) or not enough(state, state.shape)):
        go_back(state, mode, first)
    reason = f"no living cell holds every shard: back to {where}"
    actions.append(Decision(rung, tuple(range(state.shape.cells)), reason))
    actions.append(Rewind(steps, state.committed - steps))
    state.committed, state.evaluated = steps, -1
    for copies in (state.copies, *(former.copies for former in state.formers)):
        copies.undo(steps, state.generation)
    for former in state.formers:
        former.held.clear()
    state.newest, state.recorded, state.left = None, steps, Left()
    state.mode = fresh = Gathering()
    return fresh


WITHOUT_A_CELL: tuple[Way, ...] = (
    Way(Rung.COMBINE, take_combine, keeps=True),
    Way(Rung.RESHAPE, piece, keeps=True),
    Way(Rung.RECALL, take_recall),
    Way(Rung.RESTORE, take_restore),
)
