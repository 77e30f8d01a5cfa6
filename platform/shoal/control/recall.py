"""Who keeps copies of whose snapshots, and going back to them when no living worker holds a shard. Pure.

The first cell's workers copy their snapshots into the memory of workers on other nodes: nodes where no living worker
holds the same shard, so that what takes every holder does not take the copy. See
docs/architecture.md.
"""

from __future__ import annotations

from collections import Counter

from shoal.control.messages import Action, CopyTo, Form, Recall
from shoal.control.seating import hire_cell
from shoal.control.state import State

__all__ = ["HELD", "appoint", "form_recalled", "hear", "keepers", "newest"]

HELD = 2
"""Copies of a shard that a keeper holds."""


def keepers(state: State) -> dict[str, str]:
    """Keeper of each of the first cell's workers; who has none to be found stands not in it.

    Who keeps already goes on; spares come before workers that train, and the least burdened first.
    """
    owners = state.cells[state.live[0]].people()
    nodes = {name: worker.node for name, worker in state.workers.items() if worker.node not in state.draining}
    burden: Counter[str] = Counter()
    found: dict[str, str] = {}
    for rank, owner in enumerate(owners):
        taken = {nodes.get(state.cells[c].members[rank] or "") for c in state.live}
        old = state.keepers.get(owner, "")
        if nodes.get(old) is not None and nodes[old] not in taken:
            keeper = old
        else:
            able = [name for name, node in nodes.items() if node not in taken]
            if not able:
                continue
            keeper = min(able, key=lambda name: (name in state.seats, burden[name], name))
        found[owner] = keeper
        burden[keeper] += 1
    return found


def appoint(state: State, actions: list[Action]) -> None:
    """Tell the first cell's workers where to keep copies, whenever that has changed."""
    if not state.shape.recall or state.mode != "running":
        return
    pairs = keepers(state)
    if pairs != state.keepers:
        state.keepers = pairs
        ranks = {owner: state.seats[owner].rank for owner in pairs}
        actions.append(CopyTo(state.generation, state.era, pairs, ranks))


def hear(state: State, keeper: str, rank: int, steps: int, era: int) -> None:
    """A copy has arrived whole; one from before steps were undone counts no more."""
    if era == state.era and keeper in state.workers:
        held = state.copies.setdefault(keeper, {})
        older = tuple(s for s in held.get(rank, ()) if s < steps)
        held[rank] = (*older, steps)[-HELD:]


def newest(state: State) -> tuple[int, tuple[str, ...]] | None:
    """The most steps that a copy of every shard stands for, and the keeper of each rank; None if there are none."""
    at: list[dict[int, str]] = [{} for _ in range(state.shape.workers)]
    for keeper, held in sorted(state.copies.items()):
        for rank, kept in held.items():
            at[rank] |= dict.fromkeys(kept, keeper)
    common = set.intersection(*(set(rank) for rank in at))
    if not common:
        return None
    steps = max(common)
    return steps, tuple(rank[steps] for rank in at)


def form_recalled(state: State, actions: list[Action]) -> bool:
    """Form the first cell from copies as soon as enough workers are there; False if the copies are no more, or no newer
    than the last checkpoint."""
    found = newest(state)
    if found is None or found[0] <= state.checkpoint:
        state.recalled = -1
        return False
    steps, holders = found
    state.recalled = steps
    for index in range(len(state.cells)):
        state.put(index, (None,) * state.shape.workers, "empty")
    members = hire_cell(state, 0, state.spares())
    if members:
        state.put(0, members, "forming", rung="recall")
        actions.append(Form(0, state.cells[0].attempt, members, recall=Recall(steps, holders)))
    return True
