"""Planning anew: who lives stays, and no plan could move fewer. Held against all plans there are, on small clusters."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.plan import Healer, Mesh, Node, Seat, Site, Wanted, plan
from shoal.plan.cluster import LEVELS, Level
from shoal.plan.heal import Domain, Spread


def nodes_of(slots: dict[str, int]) -> list[Node]:
    """`rack.node` -> slots."""
    return [Node(name, name, n, site=Site(name.partition(".")[0])) for name, n in slots.items()]


def fewest_moves(slots: dict[str, int], cells: int, workers: int, before: dict[Seat, str]) -> int:
    """By trying every choice of cells and every way to give nodes to their seats."""
    whole = min(cells, sum(slots.values()) // workers)
    best = cells * workers
    for chosen in combinations(range(cells), whole):
        seats = [Seat(cell, rank) for cell in chosen for rank in range(workers)]
        for places in product(slots, repeat=len(seats)):
            if all(places.count(node) <= n for node, n in slots.items()):
                moved = sum(before.get(seat) != node for seat, node in zip(seats, places, strict=True))
                best = min(best, moved)
    return best


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["r.a", "r.b", "s.c", "s.d"]), st.integers(1, 3), min_size=2),
    st.sampled_from([(Mesh(1, 1, 2), 3), (Mesh(2, 1, 1), 2), (Mesh(1, 3, 1), 2), (Mesh(), 4)]),
    st.sets(st.sampled_from(["r.a", "r.b", "s.c", "s.d"]), max_size=2),
    st.booleans(),
)
def test_no_plan_moves_fewer(slots: dict[str, int], job: tuple[Mesh, int], lost: set[str], comes: bool) -> None:
    mesh, cells = job
    left = {node: n for node, n in slots.items() if node not in lost} | ({"t.e": 2} if comes else {})
    if sum(slots.values()) < mesh.workers or sum(left.values()) < mesh.workers:
        return
    old = plan(nodes_of(slots), Wanted(mesh, cells))
    new = plan(nodes_of(left), Wanted(mesh, cells), old)
    assert len(new.cells) == min(cells, sum(left.values()) // mesh.workers)
    assert len(set(new.places.values())) == len(new.places)
    assert all(place.slot < left[place.node] for place in [*new.places.values(), *new.spares])
    assert len(new.moved) == fewest_moves(left, cells, mesh.workers, old.nodes())


def cluster(nodes: int, per_rack: int, slots: int, zones: int = 1) -> list[Node]:
    name = [f"n{i:04}" for i in range(nodes)]
    racks = nodes // per_rack
    site = [Site(f"r{i // per_rack}", f"z{i // per_rack * zones // racks}") for i in range(nodes)]
    return [Node(name, name, slots, site=where) for name, where in zip(name, site, strict=True)]


@pytest.mark.parametrize(
    ("size", "job"),
    [
        ((24, 4, 8, 3), Wanted(Mesh(2, 2, 8), 5)),
        ((2048, 16, 8, 4), Wanted(Mesh(16, 1, 64), 15)),
        ((2048, 16, 8, 4), Wanted(Mesh(16, 1, 8), 127)),
    ],
    ids=str,
)
def test_the_loss_of_one_node_moves_only_its_shards(size: tuple[int, int, int, int], job: Wanted) -> None:
    nodes = cluster(*size)
    old = plan(nodes, job)
    for lost in (nodes[0].name, nodes[len(nodes) // 2].name):
        new = plan([node for node in nodes if node.name != lost], job, old)
        there = {seat for seat, place in old.places.items() if place.node == lost}
        assert there
        assert set(new.moved) == there
        assert new.apart == old.apart
        assert len(new.places) == len(old.places)


def test_the_same_cluster_gives_the_same_plan() -> None:
    nodes, job = cluster(12, 2, 4), Wanted(Mesh(2, 1, 4), 4, spares=3)
    old = plan(nodes, job)
    assert plan(nodes, job, old) == old
    assert plan(list(reversed(nodes)), job) == old


def test_without_slots_to_spare_the_cell_that_misses_least_is_filled() -> None:
    job = Wanted(Mesh(2, 1, 2), 3)
    old = plan(nodes_of({"r.a": 4, "s.b": 4, "t.c": 3, "t.d": 1}), job)
    cell = {old.places[Seat(cell, 0)].node: cell for cell in range(3)}
    new = plan(nodes_of({"s.b": 4, "t.c": 3, "u.e": 1}), job, old)
    assert set(new.cells) == {cell["s.b"], cell["t.c"]}
    assert len(new.moved) == 1
    assert new.notes[0] == "2 of 3 cells fit: 8 slots, 4 a cell"


def test_a_cluster_that_grows_gets_its_cells_back_and_nobody_moves() -> None:
    nodes, job = cluster(32, 4, 8), Wanted(Mesh(4, 1, 8), 8)
    half = plan(nodes[:16], job)
    full = plan(nodes, job, half)
    assert (len(half.cells), len(full.cells)) == (4, 8)
    assert set(full.moved) == set(full.places) - set(half.places)
    assert (half.apart, full.apart) == ("rack", "rack")


def test_another_mesh_is_planned_from_the_beginning() -> None:
    nodes = cluster(8, 2, 4)
    old = plan(nodes, Wanted(Mesh(2, 1, 2), 2))
    assert plan(nodes, Wanted(Mesh(1, 1, 4), 2), old) == plan(nodes, Wanted(Mesh(1, 1, 4), 2))


# ---- one seat at a time


def healer(
    mesh: Mesh, seats: dict[Seat, str], free: dict[str, int], sites: dict[str, Site] | None = None, cells: int = 4
) -> Healer:
    busy: dict[str, int] = {}
    for node in seats.values():
        busy[node] = busy.get(node, 0) + 1
    return Healer(mesh, cells, free, seats.get, busy, lambda node: (sites or {}).get(node, Site()))


def test_a_seat_is_filled_beside_its_expert_group_but_not_onto_a_copy() -> None:
    mesh, seats = Mesh(2, 1, 2), {Seat(0, 0): "a", Seat(0, 2): "b", Seat(0, 3): "b", Seat(1, 1): "c"}
    assert healer(mesh, seats, {"b": 1, "a": 1, "c": 2}).fill([Seat(0, 1)]) == {Seat(0, 1): "a"}
    assert healer(mesh, seats | {Seat(2, 1): "a"}, {"a": 1, "c": 2, "d": 1}).fill([Seat(0, 1)]) == {Seat(0, 1): "d"}


def test_a_group_goes_to_a_node_that_takes_all_of_it() -> None:
    found = healer(Mesh(1, 1, 2), {}, {"a": 1, "b": 1, "c": 2}).fill([Seat(0, 0), Seat(0, 1)])
    assert set(found.values()) == {"c"}


def test_domains_with_copies_are_avoided_rack_before_zone() -> None:
    sites = {"a": Site("r", "x"), "b": Site("r", "x"), "c": Site("s", "x"), "d": Site("r", "y")}
    there = {Seat(1, 0): "a"}
    assert healer(Mesh(), there, {"b": 1, "c": 1, "d": 1}, sites).fill([Seat(0, 0)]) == {Seat(0, 0): "d"}
    assert healer(Mesh(), there, {"b": 1, "c": 1}, sites).fill([Seat(0, 0)]) == {Seat(0, 0): "c"}
    assert healer(Mesh(), there, {"b": 1}, sites).fill([Seat(0, 0)]) == {Seat(0, 0): "b"}


def test_a_copy_on_the_same_node_is_better_than_no_cell() -> None:
    assert healer(Mesh(), {Seat(1, 0): "a"}, {"a": 1}).fill([Seat(0, 0)]) == {Seat(0, 0): "a"}


def test_workers_are_hired_one_a_seat_or_not_at_all() -> None:
    seats = [Seat(0, 0), Seat(0, 1)]
    spares = {"s1": "a", "s2": "b", "s3": "c", "s4": "c"}
    free = {"a": 1, "b": 1, "c": 2}
    assert healer(Mesh(ep=2), {}, free).hire(spares, seats) == {seats[0]: "s3", seats[1]: "s4"}
    assert healer(Mesh(ep=2), {}, {"a": 1}).hire({"s1": "a"}, seats) == {}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([Mesh(1, 1, 2), Mesh(2, 1, 2), Mesh(4, 1, 1), Mesh(1, 2, 2)]),
    st.dictionaries(
        st.tuples(st.integers(0, 2), st.integers(0, 3)).map(lambda pair: Seat(*pair)), st.sampled_from("abcd")
    ),
    st.fixed_dictionaries(dict.fromkeys("abcd", st.integers(0, 2))),
)
def test_as_few_shards_as_can_be_share_a_node_with_a_copy(
    mesh: Mesh, there: dict[Seat, str], free: dict[str, int]
) -> None:
    there = {seat: node for seat, node in there.items() if seat.rank < mesh.workers}
    empty = [Seat(0, rank) for rank in range(mesh.workers) if Seat(0, rank) not in there]
    if not 0 < len(empty) <= sum(free.values()):
        return

    def doubled(places: dict[Seat, str]) -> int:
        return sum(node in {there.get(Seat(cell, seat.rank)) for cell in (1, 2)} for seat, node in places.items())

    found = healer(mesh, there, free).fill(empty)
    assert all(list(found.values()).count(node) <= free[node] for node in free)
    ways = product([node for node, n in free.items() if n], repeat=len(empty))
    able = [way for way in ways if all(way.count(node) <= n for node, n in free.items())]
    assert doubled(found) == min(doubled(dict(zip(empty, way, strict=True))) for way in able)


class Recounted(Spread):
    """All cells are looked through whenever it is asked."""

    def of(self, rank: int) -> dict[Level, dict[Domain, int]]:
        nodes = [self.where(Seat(cell, rank)) for cell in range(self.cells)]
        return {
            level: dict(Counter(self.site(node).domain(level, node) for node in nodes if node is not None))
            for level in LEVELS
        }

    def count(self, rank: int, node: str, change: int = 1) -> None:
        pass


@pytest.mark.parametrize("seed", range(40))
def test_copies_that_are_counted_as_seats_are_filled_are_those_that_there_are(seed: int) -> None:
    dice = random.Random(seed)
    mesh = dice.choice([Mesh(), Mesh(1, 1, 2), Mesh(2, 1, 2), Mesh(2, 2, 1), Mesh(1, 2, 4)])
    names = [f"n{index}" for index in range(dice.randrange(3, 12))]
    sites = {name: Site(dice.choice("rst"), dice.choice("yz")) for name in names}
    everybody = [Seat(cell, rank) for cell in range(4) for rank in range(mesh.workers)]
    empty = dice.sample(everybody, dice.randrange(1, len(everybody)))
    seats = {seat: dice.choice(names) for seat in everybody if seat not in empty}
    free = Counter(dice.choice(names) for _ in range(len(empty) + dice.randrange(4)))
    busy = Counter(seats.values())
    one, other = (Healer(mesh, 4, free, seats.get, busy, sites.__getitem__) for _ in range(2))
    other.spread = Recounted(4, other.where, sites.__getitem__)
    half = len(empty) // 2
    for some in (empty[:half], empty[half:]):
        assert one.fill(some) == other.fill(some)
    assert all(one.spread.of(rank) == other.spread.of(rank) for rank in range(mesh.workers))
