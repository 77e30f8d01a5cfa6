"""Who sits where: pure functions from the nodes' slots to the seats of cells.

A cell stays inside one node where it fits (its expert all-to-all is the busiest traffic), else spans the fewest
nodes; two cells share a node only when there is no other way, since copies of a shard should not die together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal.errors import UserError

__all__ = ["Node", "Seat", "Slots", "choose", "first_plan", "spare_slots"]

Slots = Mapping[str, int]
"""Free slots of each node, by node name."""


@dataclass(frozen=True, order=True)
class Seat:
    """A place in a cell."""

    cell: int
    rank: int


@dataclass(frozen=True)
class Node:
    """A living Ray node, as the planner sees it."""

    name: str
    ray_id: str
    slots: int
    draining: bool = False


def first_plan(slots: Slots, cells: int, workers: int) -> dict[Seat, str]:
    """Seats of a new run: as many cells as fit, from `cells` down; node of each seat.

    Raises:
        UserError: not even one cell fits.
    """
    if sum(slots.values()) < workers:
        have = ", ".join(f"{name}: {n}" for name, n in sorted(slots.items())) or "no node at all"
        raise UserError(
            f"a cell needs {workers} slots, the cluster has {sum(slots.values())} free ({have})",
            "add nodes (`shoal cluster add-node`), end another run, or lower workers_per_cell",
        )
    free = dict(slots)
    seats: dict[Seat, str] = {}
    used: Counter[str] = Counter()
    for cell in range(cells):
        if sum(free.values()) < workers:
            break
        for rank, node in enumerate(take(free, workers, used)):
            seats[Seat(cell, rank)] = node
        used.update({seats[Seat(cell, rank)] for rank in range(workers)})
    return seats


def take(free: dict[str, int], workers: int, used: Mapping[str, int]) -> list[str]:
    """Take `workers` slots out of `free`: one node that no other cell uses if there is one, else the fewest nodes.

    Of nodes that serve equally the fullest that still fits is taken, so that large holes stay whole.
    """
    taken: list[str] = []
    while len(taken) < workers:
        need = workers - len(taken)
        node = min(
            (name for name, n in free.items() if n > 0),
            key=lambda name: (free[name] < need, used.get(name, 0), -min(free[name], need), free[name], name),
        )
        got = min(free[node], need)
        taken += [node] * got
        free[node] -= got
    return taken


def spare_slots(slots: Slots, seats: Iterable[str], spares: int | None) -> list[str]:
    """Nodes to hold a warm spare each (a node may stand more than once), after `seats` are taken.

    `spares`: how many at most; None: every free slot. Spares spread over the nodes in turn.
    """
    free = Counter(dict(slots))
    free.subtract(Counter(seats))
    found: list[str] = []
    while any(n > 0 for n in free.values()) and (spares is None or len(found) < spares):
        for name in sorted(name for name, n in free.items() if n > 0):
            if spares is not None and len(found) >= spares:
                break
            found.append(name)
            free[name] -= 1
    return found


def choose(
    spares: Mapping[str, str], seats: Sequence[Seat], kept: Sequence[str], others: Sequence[str]
) -> dict[Seat, str]:
    """Spares for the empty `seats` of one cell.

    `spares`: worker -> node; `kept`: nodes of the cell's remaining members; `others`: of the other cells' members.
    Prefers the members' own node, then a node that serves all seats at once, then nodes without another cell.
    Returns worker of each seat, or nothing when there are too few.
    """
    if len(spares) < len(seats):
        return {}
    by_node: dict[str, list[str]] = {}
    for worker, node in sorted(spares.items()):
        by_node.setdefault(node, []).append(worker)
    home, busy = set(kept), Counter(others)
    found: dict[Seat, str] = {}
    for seat in seats:
        need = len(seats) - len(found)
        node = min(
            (name for name, workers in by_node.items() if workers),
            key=lambda name: (name not in home, len(by_node[name]) < need, busy[name], -len(by_node[name]), name),
        )
        home.add(node)
        found[seat] = by_node[node].pop(0)
    return found
