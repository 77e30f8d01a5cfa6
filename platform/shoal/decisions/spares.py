"""Warm workers without a seat: how many are wanted and where, and giving them up for another run. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from shoal.decisions.actions import Action, Hire, Journal, Release
from shoal.decisions.events import Surveyed, Wanted
from shoal.decisions.seating import let_go
from shoal.decisions.state import State
from shoal.plan import Node, spare_slots

__all__ = ["give_up_spares", "spares_wanted", "survey"]

HOLD = 60.0
"""Seconds for which a run that gave spares up takes no others: until those who need the slots have them."""
AT_ONCE = 2
"""Spares asked for at a look: a run that starts many at once keeps nodes from training."""


def survey(state: State, event: Surveyed, actions: list[Action]) -> None:
    """Keep warm spares on free slots, once the run is under way."""
    state.now = event.now
    if state.halt is not None or (state.generation < 0 and state.expected):
        return
    shape = state.shape
    usable = [node for node in event.nodes if state.may_be_used(node.name)]
    names = {node.name for node in usable}
    everybody = [(name, worker.node) for name, worker in state.workers.items()] + list(event.asked.items())
    held = [(name, node) for name, node in everybody if node in names]
    seated = [node for name, node in held if name in state.seats]
    idle = [node for name, node in held if name not in state.seats]
    limit = 0 if event.now < state.spares_from else shape.spares
    wanted = spares_wanted(usable, seated, idle, shape.wanted, limit, state.tally.unborn)
    actions += [Hire(node) for node in wanted[:AT_ONCE]]
    there = {*wanted, *event.asked.values()} & names
    state.coming = {node: until for node, until in state.coming.items() if node in there and event.now < until}


def give_up_spares(state: State, event: Wanted, actions: list[Action]) -> None:
    """Give up to as many idle spares up as another run wants, those first that are not warm yet, and take none for a
    while."""
    cold = event.cold[: event.count]
    fresh: list[Action] = [Release(cold)] if cold else []
    let_go(state, event.count - len(cold), fresh)
    given = sorted(name for action in fresh if isinstance(action, Release) for name in action.workers)
    actions += fresh
    if given:
        state.spares_from = event.now + HOLD
        actions.append(Journal("spares_given", {"actors": given, "to": event.to}))


def spares_wanted(
    nodes: Iterable[Node],
    seated: Iterable[str],
    idle: Iterable[str],
    seats: int,
    spares: int | None,
    avoid: Collection[str] = (),
) -> list[str]:
    """Nodes on which to start one more worker each, so that the run holds `seats` + `spares` of them.

    `seated`, `idle`: nodes of its workers with and without a seat, living or starting; `avoid`: nodes to be taken only
    if there is no room on others.
    """
    nodes = list(nodes)
    sites = {node.name: node.site for node in nodes}
    slots = {node.name: node.slots for node in nodes}
    seated, idle = list(seated), list(idle)
    total = None if spares is None else max(0, seats + spares - len(seated))
    better = {name: n for name, n in slots.items() if name not in avoid}
    return spare_slots(better, seated, total, idle, sites.__getitem__) or spare_slots(
        slots, seated, total, idle, sites.__getitem__
    )
