"""Empty seats filled without moving anybody: from spares when a run heals, from free slots when a plan is made anew.

An expert group's seats go together, beside the members of the group that are there; never, if it can be helped, onto a
node that holds a copy of the same shard, nor into its rack, nor into its zone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache

from shoal.plan.cluster import LEVELS, Level, Site
from shoal_core.mesh import Mesh, Seat

__all__ = ["Healer", "Spread"]

TRIED = 256
"""Seats filled at once up to which it is tried to part copies by giving nodes out again."""

Key = tuple[int | str, ...]
Domain = tuple[str, ...]


class Spread:
    """Where copies of each rank's shard are: counted by domain when they are first asked for, then kept right by
    `count`. `where`: node of a seat of one of `cells` cells, None if it is empty."""

    def __init__(self, cells: int, where: Callable[[Seat], str | None], site: Callable[[str], Site]) -> None:
        self.cells, self.where, self.site = cells, where, site
        self.found: dict[int, dict[Level, dict[Domain, int]]] = {}
        self.domains: dict[str, tuple[Domain, ...]] = {}
        """Of each node that was asked for, as `LEVELS`."""

    def of(self, rank: int) -> dict[Level, dict[Domain, int]]:
        """Copies of a rank's shard."""
        if rank not in self.found:
            self.found[rank] = {level: {} for level in LEVELS}
            nodes = Counter(self.where(Seat(cell, rank)) for cell in range(self.cells))
            for node, copies in nodes.items():
                if node is not None:
                    self.count(rank, node, copies)
        return self.found[rank]

    def count(self, rank: int, node: str, change: int = 1) -> None:
        """There are so many more on a node."""
        if node not in self.domains:
            site = self.site(node)
            self.domains[node] = tuple(site.domain(level, node) for level in LEVELS)
        for found, domain in zip(self.of(rank).values(), self.domains[node], strict=True):
            left = found.get(domain, 0) + change
            if left:
                found[domain] = left
            else:
                del found[domain]


class Healer:
    """Fills seats of `cells` cells.

    `free`: slots by node; `at`: node of a seat, None if it is empty; `busy`: members on each node; `site`: where a node
    stands. Places that it gives are remembered, so that it may be asked for one set of seats after another.
    """

    def __init__(
        self,
        mesh: Mesh,
        cells: int,
        free: Mapping[str, int],
        at: Callable[[Seat], str | None],
        busy: Mapping[str, int],
        site: Callable[[str], Site],
    ) -> None:
        self.mesh, self.cells, self.at, self.site = mesh, cells, at, site
        self.free = {node: n for node, n in free.items() if n > 0}
        self.busy = Counter(dict(busy))
        self.placed: dict[Seat, str] = {}
        self.spread = Spread(cells, self.where, site)
        self.own: dict[int, Counter[str]] = {}
        """Nodes of each cell's members."""
        self.near: dict[Seat, tuple[set[Domain], set[Domain]]] = {}
        """Racks and zones of each stage's members, by the stage's first seat."""
        self.alike: dict[Key, dict[str, None]] = defaultdict(dict)
        """Nodes that differ at most in what sits on them."""
        for node in sorted(self.free):
            self.alike[self.kind(node)][node] = None

    # ---- what is where

    def kind(self, node: str) -> Key:
        site = self.site(node)
        return (site.zone, site.rack, self.free[node], self.busy[node] > 0)

    def where(self, seat: Seat) -> str | None:
        return self.placed.get(seat) or self.at(seat)

    def nodes(self, cell: int, ranks: Iterable[int]) -> Counter[str]:
        """Nodes of a cell's ranks that have a place."""
        places = (self.where(Seat(cell, rank)) for rank in ranks)
        return Counter(node for node in places if node is not None)

    def cell(self, cell: int) -> Counter[str]:
        """Nodes of a cell's members."""
        if cell not in self.own:
            self.own[cell] = self.nodes(cell, range(self.mesh.workers))
        return self.own[cell]

    def stage(self, seat: Seat) -> tuple[set[Domain], set[Domain]]:
        """Racks and zones of the members of a seat's stage."""
        ranks = self.mesh.stage(seat.rank)
        first = Seat(seat.cell, ranks.start)
        if first not in self.near:
            self.near[first] = (set(), set())
            for node in self.nodes(seat.cell, ranks):
                self.meet(seat, node)
        return self.near[first]

    def meet(self, seat: Seat, node: str) -> None:
        """A seat's stage has a member on a node: told where it was asked for before."""
        first = Seat(seat.cell, self.mesh.stage(seat.rank).start)
        for found, level in zip(self.near.get(first, ()), ("rack", "zone"), strict=False):
            found.add(self.site(node).domain(level, node))

    def doubled(self, seat: Seat, node: str) -> bool:
        """Whether a node holds, or would hold, another copy of a seat's shard."""
        return self.spread.of(seat.rank)["node"].get((node,), 0) > (self.placed.get(seat) == node)

    # ---- filling

    def fill(self, seats: Sequence[Seat]) -> dict[Seat, str]:
        """Node of each of `seats`; there must be slots enough."""
        for together in self.units(seats):
            left = list(together)
            while left:
                node = self.best(left)
                for seat in self.fitting(node, left):
                    self.put(seat, node)
                    left.remove(seat)
        if len(seats) <= TRIED:
            doubled = [seat for seat in seats if self.doubled(seat, self.placed[seat])]
            for seat in doubled:
                self.take(seat)
            for seat in [seat for seat in doubled if not self.reroute(seat, seats, set())]:
                self.put(seat, self.best([seat]))
        return {seat: self.placed[seat] for seat in seats}

    def reroute(self, seat: Seat, seats: Sequence[Seat], seen: set[str]) -> bool:
        """Place a seat where no copy is, though others of `seats` have to give way to places as good (an augmenting
        path of the matching of seats and nodes)."""
        nodes = {*self.free, *(self.placed[other] for other in seats if other in self.placed)}
        for node in sorted(nodes - seen):
            if self.doubled(seat, node):
                continue
            seen.add(node)
            if node not in self.free:
                for other in [other for other in seats if self.placed.get(other) == node]:
                    self.take(other)
                    if self.reroute(other, seats, seen):
                        break
                    self.put(other, node)
            if node in self.free:
                self.put(seat, node)
                return True
        return False

    def hire(self, spares: Mapping[str, str], seats: Sequence[Seat]) -> dict[Seat, str]:
        """Worker of each of `seats`, out of `spares` (worker -> node, as many as `free`); nothing if they are too
        few."""
        if len(spares) < len(seats):
            return {}
        by_node: dict[str, list[str]] = defaultdict(list)
        for worker, node in sorted(spares.items(), reverse=True):
            by_node[node].append(worker)
        return {seat: by_node[node].pop() for seat, node in self.fill(seats).items()}

    def units(self, seats: Sequence[Seat]) -> list[list[Seat]]:
        """Seats to be placed together: an expert group's, or of a stage that is missing as a whole those of as many
        groups as a node takes; units that have somebody to sit beside first."""
        mesh = self.mesh
        groups = max(1, max(self.free.values(), default=0) // mesh.ep)
        stages: dict[tuple[int, int], list[Seat]] = defaultdict(list)
        units: dict[tuple[int, int], list[Seat]] = defaultdict(list)
        for seat in sorted(seats):
            stages[seat.cell, mesh.stage(seat.rank).start].append(seat)
        for (cell, first), stage in stages.items():
            size = mesh.ep * groups if len(stage) == mesh.per_stage else mesh.ep
            for seat in stage:
                units[cell, seat.rank - (seat.rank - first) % size].append(seat)
        return sorted(units.values(), key=lambda unit: (len(unit) >= mesh.ep, unit))

    def put(self, seat: Seat, node: str) -> None:
        self.spread.count(seat.rank, node)
        self.cell(seat.cell)[node] += 1
        self.meet(seat, node)
        self.placed[seat] = node
        self.occupy(node, 1)

    def take(self, seat: Seat) -> None:
        """Undo a `put`."""
        node = self.placed.pop(seat)
        self.spread.count(seat.rank, node, -1)
        self.cell(seat.cell)[node] -= 1
        self.near.pop(Seat(seat.cell, self.mesh.stage(seat.rank).start), None)
        self.occupy(node, -1)

    def occupy(self, node: str, slots: int) -> None:
        if node in self.free:
            del self.alike[self.kind(node)][node]
        left = self.free.pop(node, 0) - slots
        self.busy[node] += slots
        if left:
            self.free[node] = left
            self.alike[self.kind(node)][node] = None

    def fitting(self, node: str, seats: Sequence[Seat]) -> list[Seat]:
        """Those of `seats` to put on a node: without a copy there, if there are any such."""
        clean = [seat for seat in seats if (node,) not in self.spread.of(seat.rank)["node"]]
        return (clean or list(seats))[: self.free[node]]

    def best(self, seats: Sequence[Seat]) -> str:
        """The node for as many as can be of a group's or stage's seats."""
        cell, rank = seats[0].cell, seats[0].rank
        own, mates = self.cell(cell), self.nodes(cell, self.mesh.group(rank))
        racks, zones = self.stage(seats[0])
        shards = [self.spread.of(seat.rank) for seat in seats]
        on_node: set[Domain] = set().union(*(shard["node"] for shard in shards))

        @cache
        def held(level: Level, domain: Domain) -> int:
            return sum(shard[level].get(domain, 0) for shard in shards)

        def key(node: str) -> Key:
            site = self.site(node)
            fits = len(self.fitting(node, seats)) if (node,) in on_node else min(self.free[node], len(seats))
            return (
                (node,) in on_node and all((node,) in shard["node"] for shard in shards),
                node not in mates,
                -fits,
                held("rack", (site.zone, site.rack)),
                held("zone", (site.zone,)),
                self.busy[node] > own[node],
                (site.zone, site.rack) not in racks,
                (site.zone,) not in zones,
                node not in own,
                self.free[node],
                node,
            )

        return min(self.candidates(own, on_node), key=key)

    def candidates(self, own: Iterable[str], on_node: set[Domain]) -> Iterator[str]:
        """The nodes of the cell's members, and of nodes that are alike the first that holds no copy (all, if none)."""
        yield from (node for node in own if node in self.free)
        for nodes in self.alike.values():
            clean = next((node for node in nodes if (node,) not in on_node), None)
            yield from nodes if clean is None else (clean,)
