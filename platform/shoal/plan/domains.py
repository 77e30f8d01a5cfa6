"""How far copies can be kept apart: failure domains with their slots, and how many copies of a shard each may hold.

Cells are laid out as one line of ranks, cell after cell. A domain that takes at most `k` cells' length of that line in
one piece holds at most `k` copies of any shard, and all ranks fit if the domains' slots, cut off there, suffice: so
what can be kept apart is known before anything is placed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from shoal.plan.cluster import Node
from shoal_core.mesh import Mesh

__all__ = ["Limits", "Rack", "Zone", "domains", "limits", "room", "usable"]


@dataclass(frozen=True)
class Limits:
    """Copies of one shard that a domain may hold, by level; `unit`: consecutive ranks that may not straddle nodes."""

    node: int
    rack: int
    zone: int
    unit: int = 1


@dataclass(frozen=True)
class Rack:
    name: tuple[str, ...]
    nodes: tuple[tuple[int, str], ...]
    """(slots, node), ascending."""


@dataclass(frozen=True)
class Zone:
    name: tuple[str, ...]
    racks: tuple[Rack, ...]


def domains(nodes: Iterable[Node]) -> list[Zone]:
    """The zones, racks and nodes that have slots."""
    found: dict[tuple[str, ...], dict[tuple[str, ...], list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
    for node in nodes:
        if node.slots > 0 and not node.draining:
            zone, rack = (node.site.domain(level, node.name) for level in ("zone", "rack"))
            found[zone][rack].append((node.slots, node.name))
    return [
        Zone(name, tuple(Rack(rack, tuple(sorted(nodes))) for rack, nodes in sorted(racks.items())))
        for name, racks in sorted(found.items())
    ]


def usable(slots: int, workers: int, limit: Limits) -> int:
    """Ranks that a node takes: whole units, and no shard too often."""
    return min(slots - slots % limit.unit, limit.node * workers)


def room(zones: Iterable[Zone], workers: int, limit: Limits) -> int:
    """Ranks that fit on the cluster within the limits."""
    total = 0
    for zone in zones:
        inside = 0
        for rack in zone.racks:
            inside += min(limit.rack * workers, sum(usable(n, workers, limit) for n, _ in rack.nodes))
        total += min(limit.zone * workers, inside)
    return total


def limits(zones: list[Zone], cells: int, mesh: Mesh) -> Limits:
    """The tightest limits within which `cells` cells fit; what is lost by one node counts most, then expert groups in
    one piece (or at least their ranks of one node, `Mesh.ep_node`), then racks, then zones. The slots must suffice.
    """
    workers, need = mesh.workers, cells * mesh.workers

    def fits(limit: Limits) -> bool:
        return room(zones, workers, limit) >= need

    loose = Limits(cells, cells, cells)
    apart = replace(loose, node=least(cells, lambda k: fits(replace(loose, node=k))))
    tighter = (replace(apart, unit=unit) for unit in (mesh.ep, mesh.ep_node))
    limit = next(filter(fits, tighter), apart)
    limit = replace(limit, rack=least(cells, lambda k: fits(replace(limit, rack=k))))
    return replace(limit, zone=least(cells, lambda k: fits(replace(limit, zone=k))))


def least(most: int, enough: Callable[[int], bool]) -> int:
    """The smallest of 1..`most` that is `enough`; `most` is."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
