"""Who keeps copies of whose snapshots, and going back to them when no living worker holds a shard. Pure.

The first cell's workers copy their snapshots into the memory of workers on other nodes: nodes where no living worker
holds the same shard, so that what takes every holder does not take the copy. See
docs/architecture.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from heapq import heapify, heappop, heappush

from shoal.decisions.actions import Action, CopyTo, Form, Recall, Refill
from shoal.decisions.copies import Copies, arrived
from shoal.decisions.modes import Gathering, Running
from shoal.decisions.seating import clear_all, hire_cell, spares
from shoal.decisions.shape import Shape
from shoal.decisions.state import State
from shoal.protocol.said import CopyHeld

__all__ = ["assign_keepers", "copy_held", "form_recalled", "keepers", "newer_copies", "newest"]


def keepers(state: State) -> dict[str, str]:
    """Keeper of each of the first cell's workers; who has none to be found stands not in it.

    Who keeps already goes on; spares come before workers that train, and the least burdened first. Where nodes are to
    go, who stays keeps its own if nobody else can: copies of all shards outlive those nodes then.
    """
    nodes = {name: worker.node for name, worker in state.workers.items() if worker.node not in state.going}
    everywhere = set(nodes.values())
    queue = [(name in state.seats, 0, name) for name in nodes]
    heapify(queue)
    burden: Counter[str] = Counter()
    found: dict[str, str] = {}
    for rank, owner in enumerate(state.cells[state.live[0]].people()):
        taken = {nodes.get(state.cells[c].members[rank] or "") for c in state.live}
        keeper = state.copies.keepers.get(owner, "")
        if nodes.get(keeper) is None or nodes[keeper] in taken:
            if everywhere <= taken:
                if state.going and owner in nodes:
                    found[owner] = owner
                continue
            keeper = lightest(queue, burden, nodes, taken)
        found[owner] = keeper
        burden[keeper] += 1
    return found


def lightest(
    queue: list[tuple[bool, int, str]], burden: Mapping[str, int], nodes: Mapping[str, str], taken: Set[str | None]
) -> str:
    """The first of `queue`, a heap of (has a seat, burden, worker), on no node that is `taken`. Burdens may be old."""
    passed = []
    while True:
        seated, load, name = heappop(queue)
        if load != burden[name]:
            heappush(queue, (seated, burden[name], name))
            continue
        passed.append((seated, load, name))
        if nodes[name] not in taken:
            break
    for one in passed:
        heappush(queue, one)
    return name


def assign_keepers(state: State, actions: list[Action]) -> None:
    """Tell the first cell's workers where to keep copies, whenever that has changed in a generation."""
    if not state.shape.recall or not isinstance(state.mode, Running) or not is_due(state):
        return
    pairs, state.copies.assigned = keepers(state), state.generation
    if pairs != state.copies.keepers:
        state.copies.keepers = pairs
        actions.append(CopyTo(state.copies.era, pairs))


def is_due(state: State) -> bool:
    """Whether keepers are to be looked for: a generation has begun since, one of them is gone or goes, or one of the
    first cell's workers has none."""
    if state.copies.assigned != state.generation or len(state.copies.keepers) < state.shape.workers:
        return True
    found = map(state.workers.get, state.copies.keepers.values())
    return any(worker is None or worker.node in state.going for worker in found)


def copy_held(state: State, event: CopyHeld) -> None:
    """A copy has arrived whole; one from before steps were undone counts no more."""
    copies = {shape.number: copies for shape, copies in by_shape(state)}
    if event.shape in copies and event.era == copies[event.shape].era and event.worker in state.workers:
        arrived(copies, event.worker, event.rank, event.steps, event.shape)


def by_shape(state: State) -> list[tuple[Shape, Copies]]:
    """The copies of the present shape, and those of the ones before it."""
    return [(state.shape, state.copies), *((former.shape, former.copies) for former in state.formers)]


def newest(state: State) -> Recall | None:
    """The copies of the most steps, of whatever shape; None if there are none of every shard."""
    found = [whole(shape, copies) for shape, copies in by_shape(state)]
    return max((one for one in found if one is not None), key=lambda one: one.steps, default=None)


def whole(shape: Shape, copies: Copies) -> Recall | None:
    """The most steps that a copy of every shard stands for, and the keeper of each rank; None if there are none."""
    at: list[dict[int, str]] = [{} for _ in range(shape.workers)]
    for keeper, held in sorted(copies.held.items()):
        for rank, kept in held.items():
            at[rank] |= dict.fromkeys(kept, keeper)
    common = set.intersection(*(set(rank) for rank in at))
    if not common:
        return None
    steps = max(common)
    return Recall(steps, tuple(rank[steps] for rank in at), shape.number)


def newer_copies(state: State) -> Recall | None:
    """The same, if they are newer than the last checkpoint."""
    found = newest(state) if state.shape.recall else None
    return found if found is not None and found.steps > state.checkpoint else None


def form_recalled(state: State, mode: Gathering, actions: list[Action]) -> None:
    """Form the first cell from copies as soon as enough workers are there: each has that of its rank, or parts of
    those of another shape."""
    found = newer_copies(state)
    assert found is not None
    mode.recalled, number = found.steps, state.shape.number
    clear_all(state)
    members = hire_cell(state, 0, spares(state))
    if members:
        state.put(0, members, "forming")
        same = found.shape == number
        refill = None if same else Refill(found.steps, copies=found)
        recall, attempt = found if same else None, state.cells[0].attempt
        actions.append(Form(0, attempt, members, recall=recall, shape=number, refill=refill))
