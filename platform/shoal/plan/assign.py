"""The plan of a run: every (cell, stage, shard) on a slot of a node, the spares, and what that plan is worth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from shoal.plan import words
from shoal.plan.cluster import Level, Node, Slots
from shoal.plan.domains import domains, limits
from shoal.plan.heal import Healer
from shoal.plan.layout import lay
from shoal.plan.spares import spare_slots
from shoal_core.mesh import Mesh, Seat

__all__ = ["Assignment", "Place", "Wanted", "first_plan", "plan"]


class Place(NamedTuple):
    """Slot `slot` (from 0) of a node."""

    node: str
    slot: int


@dataclass(frozen=True)
class Wanted:
    """What a job asks of the planner. `spares`: None asks for one on every free slot."""

    mesh: Mesh
    cells: int
    spares: int | None = None


@dataclass(frozen=True)
class Assignment:
    """Who sits where. `apart`: the widest failure domain by which copies of a shard are kept apart; `notes`: in words,
    what was reached and what not; `moved`: seats that had another place, or none, in the previous plan."""

    mesh: Mesh
    places: Mapping[Seat, Place]
    spares: tuple[Place, ...]
    apart: Level | None
    notes: tuple[str, ...]
    moved: tuple[Seat, ...] = ()

    @property
    def cells(self) -> tuple[int, ...]:
        """The cells that have their seats."""
        return tuple(sorted({seat.cell for seat in self.places}))

    def nodes(self) -> dict[Seat, str]:
        return {seat: place.node for seat, place in self.places.items()}


def plan(view: Iterable[Node], job: Wanted, previous: Assignment | None = None) -> Assignment:
    """A pure function of the cluster, the job and the plan before: the same arguments give the same plan.

    Without a `previous` plan (or one of another mesh) all is laid out anew; with one, who still has a slot stays, and
    as few shards as possible get another: cells that miss least are filled first. Nodes that drain are not used. If
    not all cells fit, as many as do are planned, and `notes` says so.

    Raises:
        UserError: not even one cell fits, or (first plan) no node has the slots that an expert group counts on; the
            remedy names the nearest settings that would fit.
    """
    nodes = [node for node in view if node.slots > 0 and not node.draining]
    slots = {node.name: node.slots for node in nodes}
    sites = {node.name: node.site for node in nodes}
    mesh, total = job.mesh, sum(slots.values())
    cells = min(job.cells, total // mesh.workers)
    if not cells:
        raise words.too_few(mesh, slots)
    if previous is None and max(slots.values()) < mesh.ep_node:
        raise words.too_small(mesh, slots)
    again = previous is not None and previous.mesh == mesh
    before = previous.places if previous is not None and again else {}
    if again:
        seats = replan(nodes, job, before, cells)
    else:
        zones = domains(nodes)
        seats = lay(zones, mesh, cells, limits(zones, cells, mesh))
    places = number(seats, before, slots)
    spares = spare_slots(slots, seats.values(), job.spares, site=lambda node: sites[node])
    level, sentence = words.apart(seats, cells, sites, kept=bool(before))
    notes = [sentence]
    if cells < job.cells:
        notes.insert(0, f"{cells} of {job.cells} cells fit: {total} slots, {mesh.workers} a cell")
    notes += words.split_groups(seats, mesh, max(slots.values()))
    if job.spares is not None and len(spares) < job.spares:
        notes.append(f"{len(spares)} of {job.spares} spares fit")
    moved = tuple(seat for seat in sorted(places) if places[seat] != before.get(seat)) if before else ()
    return Assignment(mesh, places, stand(spares, places, slots), level, tuple(notes), moved)


def replan(nodes: Iterable[Node], job: Wanted, before: Mapping[Seat, Place], cells: int) -> dict[Seat, str]:
    """Seats of `cells` cells, of which those that have a node still keep it."""
    sites = {node.name: node.site for node in nodes}
    room = Counter({node.name: node.slots for node in nodes})
    wanted = range(job.cells)
    gone = Counter(seat.cell for seat, place in before.items() if place.node not in sites)
    kept: dict[Seat, str] = {}
    for seat in sorted(before, key=lambda seat: (gone[seat.cell], seat)):
        node = before[seat].node
        if seat.cell in wanted and room[node] > 0:
            kept[seat] = node
            room[node] -= 1
    present = Counter(seat.cell for seat in kept)
    chosen = set(sorted(wanted, key=lambda cell: (-present[cell], cell))[:cells])
    for seat in [seat for seat in kept if seat.cell not in chosen]:
        room[kept.pop(seat)] += 1
    healer = Healer(job.mesh, job.cells, room, kept.get, Counter(kept.values()), sites.__getitem__)
    seats = [Seat(cell, rank) for cell in sorted(chosen) for rank in range(job.mesh.workers)]
    return kept | healer.fill([seat for seat in seats if seat not in kept])


def number(seats: Mapping[Seat, str], before: Mapping[Seat, Place], slots: Slots) -> dict[Seat, Place]:
    """Slots for seats whose nodes are known: the one a seat had on that node, else the lowest free one."""
    found: dict[Seat, Place] = {}
    for seat, node in seats.items():
        old = before.get(seat)
        if old is not None and old.node == node and old.slot < slots[node]:
            found[seat] = old
    rest = sorted(seat for seat in seats if seat not in found)
    return found | dict(zip(rest, stand([seats[seat] for seat in rest], found, slots), strict=True))


def stand(nodes: Iterable[str], places: Mapping[Seat, Place], slots: Slots) -> tuple[Place, ...]:
    """A free slot on each of `nodes`."""
    taken: dict[str, set[int]] = defaultdict(set)
    for place in places.values():
        taken[place.node].add(place.slot)
    free = {node: iter([slot for slot in range(n) if slot not in taken[node]]) for node, n in slots.items()}
    return tuple(Place(node, next(free[node])) for node in nodes)


def first_plan(slots: Slots, cells: int, workers: int) -> dict[Seat, str]:
    """Node of every seat of a new run whose cells are one expert group each, on nodes of which nothing is known but
    their slots (see `plan`)."""
    nodes = [Node(name, name, n) for name, n in slots.items()]
    return plan(nodes, Wanted(Mesh(ep=workers), cells)).nodes()
