"""Who sits where in cells of another shape: on each seat, if it can be, who holds most of its shard already.

Copies of a shard come first: they stay on as different nodes as the planner can keep them. Then the fewest bytes move;
then an expert group's seats stand on one node.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from shoal.plan.assign import Wanted, plan
from shoal.plan.cluster import Node, Site
from shoal.plan.heal import Healer
from shoal.plan.reshape.overlap import Overlap
from shoal.plan.words import crowding
from shoal_core.mesh import Mesh, Seat

__all__ = ["Placed", "Survivor", "exposed", "place"]

MANY = 2048
"""Seats of shards that nobody holds enough of: with more of them cells are laid out anew, which takes less time."""


@dataclass(frozen=True)
class Survivor:
    """A living, warm worker. `rank`: the shard that it holds of the present mesh, at the committed step (None: none);
    `age`: seconds since it joined."""

    node: str
    rank: int | None
    age: float = float("inf")


@dataclass(frozen=True)
class Placed:
    """`crews`: workers by cell and rank; `moved`: replicas' worth of state that come from elsewhere, in all; `most`:
    the same of the worker that receives most."""

    crews: tuple[tuple[str, ...], ...]
    moved: float
    most: float


def place(
    living: Mapping[str, Survivor], mesh: Mesh, cells: int, shared: Overlap, site: Callable[[str], Site]
) -> Placed:
    """Seats for `cells` cells of `mesh`, for which the living must suffice. `shared`: see `overlaps`."""
    taken = matched(living, [(rank, cells) for rank in range(mesh.workers)], shared, site)
    if cells * mesh.workers - len(taken) > MANY:
        seats = by_plan(living, mesh, cells, shared, site)
    else:
        seats = by_holding(taken, living, mesh, cells, site)
    if cells > 1 and crowding(nodes_of(seats, living), site)["node"] > 1:
        apart = by_plan(living, mesh, cells, shared, site)
        seats = min(seats, apart, key=lambda found: crowding(nodes_of(found, living), site)["node"])
    crews = tuple(tuple(seats[Seat(cell, rank)] for rank in range(mesh.workers)) for cell in range(cells))
    has: dict[tuple[int | None, int], float] = {(old, new): size for size, old, new in shared}
    missing = [1 / mesh.workers - has.get((living[worker].rank, seat.rank), 0.0) for seat, worker in seats.items()]
    return Placed(crews, max(0.0, sum(missing)), max(0.0, *missing))


def exposed(holders: Iterable[tuple[int, str]]) -> int:
    """Shards that all stand on one node: `holders` are rank and node of each worker that has one."""
    nodes: dict[int, set[str]] = defaultdict(set)
    for rank, node in holders:
        nodes[rank].add(node)
    return sum(len(found) == 1 for found in nodes.values())


def nodes_of(seats: Mapping[Seat, str], living: Mapping[str, Survivor]) -> dict[Seat, str]:
    return {seat: living[worker].node for seat, worker in seats.items()}


# ---- by what they hold


def by_holding(
    taken: Mapping[str, int], living: Mapping[str, Survivor], mesh: Mesh, cells: int, site: Callable[[str], Site]
) -> dict[Seat, str]:
    """Worker of each seat: those that have a rank (see `matched`) keep it, the other seats are filled as a run is
    healed."""
    seats = numbered(taken, living, mesh, cells, site)
    seated = set(seats.values())
    spares = {worker: one.node for worker, one in living.items() if worker not in seated}
    holes = [seat for cell in range(cells) for rank in range(mesh.workers) if (seat := Seat(cell, rank)) not in seats]
    at = nodes_of(seats, living)
    healer = Healer(mesh, cells, Counter(spares.values()), at.get, Counter(at.values()), site)
    return seats | healer.hire(spares, holes)


def matched(
    living: Mapping[str, Survivor],
    wanted: Iterable[tuple[int, int]],
    shared: Overlap,
    site: Callable[[str], Site],
) -> dict[str, int]:
    """The new rank of as many workers as can have one that they hold part of, those that share most first: no node
    takes a rank twice. `wanted`: (rank, how many of it)."""
    left = dict(wanted)
    holders: dict[int, list[str]] = defaultdict(list)
    for worker in in_order(living, living, site):
        rank = living[worker].rank
        if rank is not None:
            holders[rank].append(worker)
    found: dict[str, int] = {}
    there: set[tuple[str, int]] = set()
    for _, old, new in shared:
        if not left[new]:
            continue
        passed = []
        for worker in holders[old]:
            node = living[worker].node
            if left[new] and (node, new) not in there:
                found[worker] = new
                there.add((node, new))
                left[new] -= 1
            else:
                passed.append(worker)
        holders[old] = passed
    return found


def in_order(workers: Iterable[str], living: Mapping[str, Survivor], site: Callable[[str], Site]) -> list[str]:
    """Neighbours on the cluster one after the other."""

    def key(worker: str) -> tuple[str, ...]:
        node = living[worker].node
        where = site(node)
        return (where.zone, where.rack, node, worker)

    return sorted(workers, key=key)


def numbered(
    taken: Mapping[str, int],
    living: Mapping[str, Survivor],
    mesh: Mesh,
    cells: int,
    site: Callable[[str], Site],
) -> dict[Seat, str]:
    """Cells for workers that have a rank: those of an expert group on one node share one, as far as there are such;
    of the rest, neighbours do."""
    groups: dict[int, dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
    for worker in in_order(taken, living, site):
        rank = taken[worker]
        groups[rank // mesh.ep][living[worker].node][rank] = worker
    seats: dict[Seat, str] = {}
    for members in groups.values():
        whole = [ranks for ranks in members.values() if len(ranks) == mesh.ep]
        parts = [ranks for ranks in members.values() if len(ranks) < mesh.ep]
        for cell, ranks in enumerate(whole):
            seats |= {Seat(cell, rank): worker for rank, worker in ranks.items()}
        free: Counter[int] = Counter()
        for ranks in parts:
            for rank, worker in ranks.items():
                seats[Seat(len(whole) + free[rank], rank)] = worker
                free[rank] += 1
    return seats


# ---- by the planner


def by_plan(
    living: Mapping[str, Survivor], mesh: Mesh, cells: int, shared: Overlap, site: Callable[[str], Site]
) -> dict[Seat, str]:
    """Worker of each seat where the nodes are those of a first plan, which keeps copies as far apart as can be; on each
    node, by what they hold."""
    on_node: dict[str, dict[str, Survivor]] = defaultdict(dict)
    for worker, one in living.items():
        on_node[one.node][worker] = one
    nodes = [Node(name, name, len(workers), site=site(name)) for name, workers in on_node.items()]
    if max(node.slots for node in nodes) < mesh.ep_node:  # what costs traffic is refused when a run starts, not now
        mesh = replace(mesh, ep_node=1)
    planned = plan(nodes, Wanted(mesh, cells, 0)).nodes()
    of_rank: dict[int, Overlap] = defaultdict(list)
    for pair in shared:
        of_rank[pair[2]].append(pair)
    there: dict[str, list[Seat]] = defaultdict(list)
    for seat, node in planned.items():
        there[node].append(seat)
    seats: dict[Seat, str] = {}
    for node, mine in there.items():
        open_seats: dict[int, list[Seat]] = defaultdict(list)
        for seat in mine:
            open_seats[seat.rank].append(seat)
        free = on_node[node]
        pairs = sorted((pair for rank in open_seats for pair in of_rank[rank]), key=lambda pair: (-pair[0], *pair[1:]))
        chosen = matched(free, [(rank, len(seats)) for rank, seats in open_seats.items()], pairs, site)
        for worker, rank in chosen.items():
            seats[open_seats[rank].pop()] = worker
        rest = [seat for found in open_seats.values() for seat in found]
        seats |= dict(zip(rest, sorted(worker for worker in free if worker not in chosen), strict=False))
    return seats
