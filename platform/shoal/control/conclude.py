"""The end of a generation: what is committed, who goes on, and from where.

Decided only when every living worker has answered the stop. The rule: if anyone committed a step, everyone alive
commits it. See docs/commit-protocol.md.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from shoal import batching
from shoal.control.messages import Action, End, Generation, Journal, Rewind
from shoal.control.recall import form_recalled, newest
from shoal.control.seating import combine, fill, movable, release
from shoal.control.state import Phase, State

__all__ = ["conclude", "end", "fall_back", "publish"]


def conclude(state: State, actions: list[Action]) -> None:
    """If every living worker has answered: decide what is committed and who goes on."""
    if state.awaited:
        return
    steps = state.committed
    state.evaluated = max([state.evaluated, *(ack.evaluated for ack in state.acks.values())])
    healthy = [c for c in state.live if c not in state.broken]
    good = [c for c in healthy if all(state.acks[w].steps == steps for w in state.crew([c]))]
    if not good:
        start_over(state, actions)
        return
    if state.verdict:
        if state.checkpoint < steps:
            publish(state, good[:1], {}, actions)
        else:
            end(state, actions)
        return
    leaving = state.leaving & set(movable(state)) & set(healthy)
    if leaving >= set(good):
        leaving -= {min(good)}
    stay = [c for c in good if c not in leaving]
    done = {c: state.acks[state.crew([c])[0]].done for c in stay}
    broken, moved = state.broken, sorted(leaving)
    for index in sorted(broken | leaving):
        state.empty(index, rung="heal" if index in broken else "drain")
    joining = [c for c, cell in enumerate(state.cells) if cell.phase == "ready"]
    unhealed = sorted(set(healthy) - set(good) - leaving)
    publish(state, sorted([*stay, *unhealed, *joining]), done, actions, good=stay)
    fill(state, actions)
    release(state, actions)
    for c in sorted(broken):
        rung = "shrink" if state.cells[c].phase == "empty" else "heal"
        actions.append(Journal("decision", {"rung": rung, "cells": [c], "reason": reason_of(rung, c)}))
    if moved:
        reason = f"moved off nodes that will be taken away, {whither({state.cells[c].phase for c in moved})}"
        actions.append(Journal("decision", {"rung": "drain", "cells": moved, "reason": reason}))
    elif state.draining and not broken and not joining:
        reason = "no other copy could take over: the state is saved before the node goes"
        actions.append(Journal("decision", {"rung": "drain", "cells": good, "reason": reason}))
    elif not broken and not joining:
        actions.append(Journal("decision", {"rung": "retry", "cells": good, "reason": "nobody died: same step again"}))


def end(state: State, actions: list[Action], *, done: bool = False) -> None:
    """The run is over: `done`, or for the reason of its verdict."""
    state.mode = "ended"
    if done:
        actions.append(End("done", "every step is committed"))
    else:
        saved = f"its state is saved up to step {state.checkpoint} of {state.committed} committed ones"
        actions.append(End(state.ends, f"{state.verdict}; {saved}"))


def reason_of(rung: str, cell: int) -> str:
    if rung == "heal":
        return f"cell {cell} is formed again from its living members and spares; the other cells go on"
    return f"no spare for cell {cell}: the other cells take its micro-batches, its living workers are spares now"


def whither(phases: Set[Phase]) -> str:
    """Of cells that have left their nodes, by what they are now."""
    if "empty" in phases:
        return "to be formed again once there is room"
    return "to be formed again on other nodes" if "forming" in phases else "to others that stood ready"


def start_over(state: State, actions: list[Action]) -> None:
    """No cell is whole any more: go on from what living workers still hold, else from copies or a checkpoint."""
    state.held = {
        worker: ack.rank
        for worker, ack in state.acks.items()
        if ack.rank >= 0 and ack.steps == state.committed and worker not in state.tainted
    }
    state.mode, state.live, state.broken, state.leaving = "gathering", (), frozenset(), frozenset()
    state.successors = {}
    state.generation += 1  # nothing that is still said of the one that ended counts any more
    state.acks, state.finished, state.pausing = {}, set(), False
    state.fruitless += 1
    if combine(state, actions):
        reason = "no cell is whole, but together its workers hold every shard: put together, nothing is lost"
        cells = list(range(state.shape.cells))
        actions.append(Journal("decision", {"rung": "combine", "cells": cells, "reason": reason}))
    else:
        fall_back(state, actions)


def fall_back(state: State, actions: list[Action]) -> None:
    """Some shard is in no living cell's memory: back to the newest copies on other nodes, or to the last checkpoint."""
    if state.verdict:
        end(state, actions)
        return
    found = newest(state) if state.shape.recall else None
    if found is not None and found[0] > state.checkpoint:
        where = f"the copies of step {found[0]} in the memory of other nodes"
        undo(state, found[0], "recall", where, actions)
        form_recalled(state, actions)
        return
    where = f"the checkpoint of step {state.checkpoint}" if state.checkpoint else "the initial state"
    undo(state, state.checkpoint, "restore", where, actions)
    for index in range(state.shape.cells):
        state.empty(index, rung="restore")
    fill(state, actions)


def undo(state: State, steps: int, rung: str, where: str, actions: list[Action]) -> None:
    """Take back what was committed from `steps` on; copies of it are of a history that is left."""
    reason = f"no living cell holds every shard: back to {where}"
    actions.append(Journal("decision", {"rung": rung, "cells": list(range(state.shape.cells)), "reason": reason}))
    actions.append(Rewind(steps, state.committed - steps))
    state.committed, state.evaluated, state.era, state.keepers = steps, -1, state.generation, {}
    for held in state.copies.values():
        for rank, kept in held.items():
            held[rank] = tuple(s for s in kept if s <= steps)


def publish(
    state: State,
    cells: list[int],
    done: dict[int, tuple[int, ...]],
    actions: list[Action],
    good: list[int] | None = None,
) -> None:
    """A new generation of `cells`; those not in `good` (by default the first alone) are healed from those that are."""
    good = [cells[0]] if good is None else good
    if state.committed < state.shape.steps:
        todo = batching.rest(state.shape.micro_batches(state.committed), cells, done)
    else:
        todo = {c: [] for c in cells}
    state.generation += 1
    state.mode, state.live, state.broken, state.leaving = "running", tuple(cells), frozenset(), frozenset()
    state.acks, state.held, state.finished, state.pausing = {}, {}, set(), False
    state.recalled = -1
    state.fruitless += 1
    sources = set(good)
    heals = tuple((good[i % len(good)], c) for i, c in enumerate(c for c in cells if c not in sources))
    for c in cells:
        state.cells[c] = replace(state.cells[c], phase="live", ready=frozenset())
    members = {c: tuple(state.cells[c].people()) for c in cells}
    state.tainted -= {worker for crew in members.values() for worker in crew}
    attempts = {c: state.cells[c].attempt for c in cells}
    halt = bool(state.verdict)
    # nowhere to go for the last copy: what it holds must outlive it
    last = any(state.workers[m].node in state.draining for c in good for m in members[c]) and len(good) == 1
    where = (state.committed, state.evaluated)
    actions.append(Generation(state.generation, members, attempts, *where, todo, heals, last or halt, halt))
