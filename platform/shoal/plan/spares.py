"""Where warm spares stand: spread over zones, racks and nodes, so that each can be healed from its own."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
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

    `slots`: of each node; `seats`: nodes of the slots that members take; `held`: nodes of the spares that are there
    already; `spares`: how many there shall be, None: one on every free slot. The next one goes to the zone with the
    fewest, in it to the rack and in that to the node with the fewest.
    """
    there = Counter(held)
    free = Counter({node: n for node, n in slots.items() if n > 0})
    free.subtract(Counter(seats))
    free.subtract(there)
    missing = None if spares is None else max(0, spares - there.total())
    return list(islice(spread(+free, there, site), missing))


def spread(free: Counter[str], there: Counter[str], site: Callable[[str], Site]) -> Iterator[str]:
    """The free slots' nodes, in the order in which spares are to take them."""
    zones: dict[str, dict[str, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
    in_zone: Counter[str] = Counter()
    in_rack: Counter[tuple[str, str]] = Counter()
    for node, spares in there.items():
        where = site(node)
        in_zone[where.zone] += spares
        in_rack[where.zone, where.rack] += spares
    for node in sorted(free):
        where = site(node)
        heapq.heappush(zones[where.zone][where.rack], (there[node], node))
    while zones:
        zone = min(zones, key=lambda name: (in_zone[name], name))
        racks = zones[zone]
        rack = min(racks, key=lambda name: (in_rack[zone, name], name))
        spares, node = heapq.heappop(racks[rack])
        yield node
        in_zone[zone] += 1
        in_rack[zone, rack] += 1
        free[node] -= 1
        if free[node]:
            heapq.heappush(racks[rack], (spares + 1, node))
        if not racks[rack]:
            del racks[rack]
        if not racks:
            del zones[zone]
