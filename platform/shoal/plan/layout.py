"""The first plan: cells laid out as one line of ranks over zones, racks and nodes.

Neighbours on the line are neighbours on the cluster, so stages and expert groups stay close together. Slots that are
not needed are spent on beginning anew: a cell in a domain that no other cell uses, a stage or an expert group in a
domain that holds all of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from shoal.plan.domains import Limits, Rack, Zone, usable
from shoal_core.mesh import Mesh, Seat

__all__ = ["lay"]


def lay(zones: list[Zone], mesh: Mesh, cells: int, limit: Limits) -> dict[Seat, str]:
    """Node of every seat of `cells` cells, which must fit within the limits (see `domains.limits`)."""
    return Walk(zones, mesh, cells, limit).seats()


@dataclass
class Open:
    """A domain while it is filled. `room`: ranks it may still take (of a zone or rack: by its quota, whatever its nodes
    hold); `inner`: what its domains to come take together; `taken`: ranks it has."""

    room: int = 0
    inner: int = 0
    taken: int = 0
    racks: deque[tuple[int, list[tuple[int, int, str]]]] = field(default_factory=deque)
    nodes: list[tuple[int, int, str]] = field(default_factory=list)
    name: str = ""


class Walk:
    """A place on the cluster that only moves on, and the line of ranks it leaves behind."""

    def __init__(self, zones: list[Zone], mesh: Mesh, cells: int, limit: Limits) -> None:
        self.mesh, self.limit = mesh, limit
        self.total, self.place = cells * mesh.workers, 0
        sized = []
        for zone in zones:
            racks = sorted((self.sized(rack) for rack in zone.racks), key=lambda rack: -rack[0])
            sized.append((min(limit.zone * mesh.workers, sum(cap for cap, _ in racks)), deque(racks)))
        self.zones = deque(sorted(sized, key=lambda zone: -zone[0]))
        self.zones_left = sum(cap for cap, _ in self.zones)
        inside = [rack for _, racks in self.zones for rack in racks]
        self.largest = {
            "zone": max(cap for cap, _ in self.zones),
            "rack": max(cap for cap, _ in inside),
            "node": max(node[0] for _, nodes in inside for node in nodes),
        }
        self.zone, self.rack, self.node = Open(), Open(), Open()

    def sized(self, rack: Rack) -> tuple[int, list[tuple[int, int, str]]]:
        """(ranks it takes, its nodes as (ranks each takes, slots, name))."""
        ranks = [(usable(slots, self.mesh.workers, self.limit), slots, name) for slots, name in rack.nodes]
        return min(self.limit.rack * self.mesh.workers, sum(n for n, _, _ in ranks)), sorted(ranks)

    def seats(self) -> dict[Seat, str]:
        found: dict[Seat, str] = {}
        mesh = self.mesh
        while self.place < self.total:
            self.begin_anew()
            self.move_on()
            group_end = self.place - self.place % mesh.ep + mesh.ep
            count = min(group_end - self.place, self.room("node"))
            for position in range(self.place, self.place + count):
                found[Seat(*divmod(position, mesh.workers))] = self.node.name
            self.place += count
            for domain in (self.node, self.rack, self.zone):
                domain.room -= count
                domain.taken += count
        return found

    def room(self, level: str) -> int:
        """Ranks that the domain at hand still takes."""
        node = self.node.room
        rack = node if level == "node" else self.rack.inner + node
        rack = min(self.rack.room, rack)
        zone = self.zone.inner + rack if level == "zone" else rack
        return min(self.zone.room, zone)

    def rest(self, skip: str) -> int:
        """Ranks that still fit if what is left of the domain at hand stays empty."""
        rack = min(self.rack.room, self.rack.inner) if skip == "node" else 0
        zone = min(self.zone.room, self.zone.inner + rack) if skip != "zone" else 0
        return self.zones_left + zone

    def begin_anew(self) -> None:
        """Leave domains where a cell, a stage or a group begins and would rather not, if there are slots enough."""
        mesh, left = self.mesh, self.total - self.place
        sizes = [size for size in (mesh.workers, mesh.per_stage, mesh.ep) if self.place % size == 0]
        for level, domain in (("zone", self.zone), ("rack", self.rack), ("node", self.node)):
            if domain.taken == 0 or self.rest(level) < left:
                continue
            shared = self.place % mesh.workers == 0
            if shared or any(self.straddles(size, level) for size in sizes):
                for inner in (self.node, self.rack, self.zone)[: ("node", "rack", "zone").index(level) + 1]:
                    inner.room = 0
                return

    def straddles(self, size: int, level: str) -> bool:
        """Whether `size` ranks from here need more domains than they would from the beginning of one."""
        largest = self.largest[level]
        return 1 - (self.room(level) - size) // largest > -(-size // largest)

    def move_on(self) -> None:
        """To the next node, rack or zone with room."""
        workers = self.mesh.workers
        while self.room("node") == 0:
            if self.zone.room == 0 or (not self.zone.racks and (self.rack.room == 0 or not self.rack.nodes)):
                cap, racks = self.zones.popleft()
                self.zones_left -= cap
                self.zone = Open(self.limit.zone * workers, sum(c for c, _ in racks), racks=racks)
                self.rack = self.node = Open()
            elif self.rack.room == 0 or not self.rack.nodes:
                cap, nodes = self.zone.racks.popleft()
                self.zone.inner -= cap
                self.rack = Open(self.limit.rack * workers, sum(n for n, _, _ in nodes), nodes=nodes)
                self.node = Open()
            else:
                room, _, name = self.pick(self.rack.nodes)
                self.rack.inner -= room
                self.node = Open(room, name=name)

    def pick(self, nodes: list[tuple[int, int, str]]) -> tuple[int, int, str]:
        """The smallest node that takes the rest of the cell, else the largest."""
        need = self.mesh.workers - self.place % self.mesh.workers
        at = bisect_left(nodes, (need, 0, ""))
        if at == len(nodes):
            at = bisect_left(nodes, (nodes[-1][0], 0, ""))
        return nodes.pop(at)
