"""Where warm spares stand: spread over zones, racks and nodes, so that each can be healed from its own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from shoal.plan.cluster import NOWHERE, Site, Slots

__all__ = ["spare_slots"]


def spare_slots(
    slots: Slots,
    seats: Iterable[str],
    spares: int | None,
    held: Iterable[str] = (),
    site: Callable[[str], Site] = lambda node: NOWHERE,
) -> list[str]:
    """Nodes to hold one more warm spare each (a node may stand more than once).

    `slots`: of each node; `seats`: nodes of the slots that are taken by members; `held`: of the spares that there are
    already; `spares`: how many there shall be, None: one on every free slot. New ones go where those that are there
    leave a gap.
    """
    free = Counter({node: n for node, n in slots.items() if n > 0})
    free.subtract(Counter(seats))
    there = Counter(held)
    missing = None if spares is None else max(0, spares - there.total())
    found = []
    for node in islice(spread(free, site), spares):
        if there[node]:
            there[node] -= 1
        else:
            found.append(node)
    return found[:missing]


def spread(free: Mapping[str, int], site: Callable[[str], Site]) -> Iterator[str]:
    """Every free slot's node: zones take turns, in a zone its racks, in a rack its nodes."""
    zones: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for node in sorted(node for node, n in free.items() if n > 0):
        where = site(node)
        zones[where.zone][where.rack].append(node)
    return in_turn(
        in_turn(in_turn([node] * free[node] for node in nodes) for nodes in racks.values()) for racks in zones.values()
    )


def in_turn(many: Iterable[Iterable[str]]) -> Iterator[str]:
    """One of each, then the next of each, until all are used up."""
    left = [iter(one) for one in many]
    while left:
        still = []
        for one in left:
            for item in islice(one, 1):
                yield item
                still.append(one)
        left = still
