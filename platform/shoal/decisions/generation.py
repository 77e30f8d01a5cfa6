"""A generation begins: who is in it, what is left of the pending step, and who copies its state to whom. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shoal import batching
from shoal.decisions.actions import Action, Generation
from shoal.decisions.modes import Running
from shoal.decisions.state import State

__all__ = ["begin"]


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
        todo = batching.rest(state.shape.micro_batches(state.committed), cells, done)
    else:
        todo = {c: [] for c in cells}
    state.generation += 1
    state.mode, state.watchdog.moved = Running(tuple(cells)), None
    state.tally.fruitless += 1
    for c in cells:
        state.cells[c] = replace(state.cells[c], phase="live", ready=frozenset())
    members = {c: tuple(state.cells[c].people()) for c in cells}
    state.tainted -= {worker for crew in members.values() for worker in crew}
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


def heals(cells: Sequence[int], whole: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(from, to) for each of `cells` that is not whole, the whole ones in turn."""
    needy = sorted(set(cells) - set(whole))
    return tuple((whole[i % len(whole)], cell) for i, cell in enumerate(needy))


def last_one_goes(state: State, whole: Sequence[int], members: Mapping[int, tuple[str, ...]]) -> bool:
    """Whether the only whole cell stands on nodes that will be taken away: what it holds must outlive it."""
    return len(whole) == 1 and any(state.workers[m].node in state.going for m in members[whole[0]])
