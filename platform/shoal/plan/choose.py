"""Spares for one cell, by node names alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from shoal.plan.mesh import Seat

__all__ = ["choose"]


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
