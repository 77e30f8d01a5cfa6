"""The first plan of meshes over nodes, racks and zones: what it promises, and the reasons it gives where it cannot."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.plan import Assignment, Mesh, Node, Seat, Site, Wanted, plan
from shoal_core.errors import UserError


def cluster(racks: dict[str, tuple[int, ...]]) -> list[Node]:
    """`{"zone/rack": slots of each node}`; the n-th node of rack `a/r` is `a.r.n`."""
    nodes = []
    for where, slots in racks.items():
        zone, rack = where.split("/")
        names = [f"{zone}.{rack}.{i}" for i in range(len(slots))]
        nodes += [Node(name, name, n, site=Site(rack, zone)) for name, n in zip(names, slots, strict=True)]
    return nodes


def grid(zones: int, racks: int, nodes: int, slots: int) -> list[Node]:
    return cluster({f"z{z}/r{r}": (slots,) * nodes for z in range(zones) for r in range(racks)})


def most_copies(found: Assignment, nodes: list[Node], level: str) -> int:
    """Of one shard in one domain, counted from the places themselves."""
    site = {node.name: node.site for node in nodes}
    name = {
        "node": lambda node: node,
        "rack": lambda node: (site[node].zone, site[node].rack),
        "zone": lambda node: site[node].zone,
    }[level]
    counts = Counter((seat.rank, name(place.node)) for seat, place in found.places.items())
    return max(counts.values())


def nodes_of_groups(found: Assignment, size: int = 0) -> list[int]:
    """Nodes that each expert group spans, or each run of `size` ranks."""
    groups: dict[tuple[int, int], set[str]] = defaultdict(set)
    for seat, place in found.places.items():
        groups[seat.cell, seat.rank // (size or found.mesh.ep)].add(place.node)
    return [len(nodes) for nodes in groups.values()]


def test_coordinates() -> None:
    mesh = Mesh(pp=2, fsdp=3, ep=4)
    assert mesh.workers == 24
    assert [mesh.coords(rank) for rank in (0, 11, 12, 23)] == [(0, 0), (0, 11), (1, 0), (1, 11)]
    assert mesh.group(14) == range(12, 16)
    assert mesh.stage(14) == range(12, 24)


def test_a_mesh_comes_from_what_the_workload_names() -> None:
    assert Mesh.of({"pp": 2, "ep": 2}, 8) == Mesh(2, 2, 2)
    assert Mesh.of({"ep": 4, "ep_node": 2}, 8) == Mesh(1, 2, 4, ep_node=2)
    assert Mesh.of({}, 4) == Mesh(1, 1, 4)
    with pytest.raises(UserError, match="ep: 2 does not divide the 3 workers a stage") as error:
        Mesh.of({"pp": 2, "ep": 2}, 6)
    assert error.value.remedy == "ep 1 or 3, or cells of 4 or 8 workers"


def test_copies_are_kept_apart_by_zone_where_there_are_zones_enough() -> None:
    nodes = grid(zones=2, racks=2, nodes=2, slots=4)
    found = plan(nodes, Wanted(Mesh(pp=2, ep=4), cells=2))
    assert (found.apart, most_copies(found, nodes, "zone")) == ("zone", 1)
    assert found.notes == ("copies are kept apart by zone",)
    assert set(nodes_of_groups(found)) == {1}


def test_zones_of_uneven_size_still_keep_copies_apart() -> None:
    """Neither cell has a zone to itself: the middle zone takes one end of each."""
    nodes = cluster({"a/r": (2, 2), "b/r": (2, 2), "c/r": (2, 2)})
    found = plan(nodes, Wanted(Mesh(pp=3, ep=2), cells=2))
    assert most_copies(found, nodes, "zone") == 1
    assert len(found.places) == 12


def test_the_level_that_cannot_be_reached_is_given_its_reason() -> None:
    nodes = grid(zones=1, racks=4, nodes=2, slots=4)
    found = plan(nodes, Wanted(Mesh(pp=2, ep=4), cells=4))
    assert found.apart == "rack"
    assert found.notes[0].startswith("copies are kept apart by rack; by zone impossible: only 1 zone has slots")
    unlabelled = [Node(node.name, node.name, node.slots) for node in nodes]
    (note,) = plan(unlabelled, Wanted(Mesh(pp=2, ep=4), cells=4)).notes
    assert "apart by node; by rack unknown: no node with slots has a rack label" in note
    (note,) = plan(cluster({"a/r": (4,) * 3, "b/r": (4,)}), Wanted(Mesh(pp=2, ep=4), cells=2)).notes
    assert "by zone impossible: 2 zones have slots, but too unevenly (up to 2 copies of a shard in one)" in note


def test_where_zones_are_fewer_than_cells_each_takes_its_share_of_copies() -> None:
    nodes = grid(zones=2, racks=4, nodes=2, slots=2)
    found = plan(nodes, Wanted(Mesh(pp=2, ep=2), cells=6))
    assert [most_copies(found, nodes, level) for level in ("node", "rack", "zone")] == [1, 1, 3]


def test_an_expert_group_larger_than_a_node_spans_the_fewest() -> None:
    found = plan(grid(1, 2, 8, slots=4), Wanted(Mesh(pp=2, ep=6), cells=2))
    assert set(nodes_of_groups(found)) == {2}
    assert "4 of 4 expert groups of 6 span up to 2 nodes: the largest node has 4 slots" in found.notes


def test_the_ranks_that_a_group_takes_for_one_nodes_are() -> None:
    nodes = grid(1, 1, 6, slots=3)
    assert 2 in nodes_of_groups(plan(nodes, Wanted(Mesh(ep=4), cells=3)), 2)
    found = plan(nodes, Wanted(Mesh(ep=4, ep_node=2), cells=3))
    assert set(nodes_of_groups(found, 2)) == {1}
    assert not any("ep_node" in note for note in found.notes)


def test_where_slots_do_not_suffice_for_that_the_plan_says_so() -> None:
    found = plan(grid(1, 1, 4, slots=3), Wanted(Mesh(ep=4, ep_node=2), cells=3))
    split = nodes_of_groups(found, 2).count(2)
    assert split
    assert any(note.startswith(f"{split} of 6 times 2 ranks (ep_node) are not on one node") for note in found.notes)


def test_nodes_smaller_than_a_groups_share_are_refused() -> None:
    nodes, wanted = grid(1, 1, 4, slots=3), Wanted(Mesh(ep=8, ep_node=4), cells=1)
    with pytest.raises(UserError, match=r"count on 4 ranks a node \(ep_node\), the largest node has 3 slots") as error:
        plan(nodes, wanted)
    assert "ep_node to 2, or add nodes of 4 slots" in error.value.remedy


def test_a_group_that_fits_is_not_split_though_slots_are_left_over() -> None:
    found = plan(grid(1, 1, 6, slots=5), Wanted(Mesh(pp=3, ep=4), cells=2))
    assert set(nodes_of_groups(found)) == {1}


def test_groups_are_split_rather_than_a_cell_left_out() -> None:
    found = plan(grid(1, 1, 3, slots=3), Wanted(Mesh(ep=2), cells=4))
    assert len(found.cells) == 4
    assert sorted(nodes_of_groups(found)) == [1, 1, 1, 2]
    assert any(note.startswith("1 of 4 expert groups of 2 span up to 2 nodes") for note in found.notes)


def test_a_stage_stays_on_one_node_where_it_fits() -> None:
    found = plan(grid(1, 1, 4, slots=8), Wanted(Mesh(pp=4, fsdp=3, ep=2), cells=1))
    stages = defaultdict(set)
    for seat, place in found.places.items():
        stages[found.mesh.coords(seat.rank)[0]].add(place.node)
    assert {len(nodes) for nodes in stages.values()} == {1}


def test_fewer_cells_are_planned_and_said_when_not_all_fit() -> None:
    found = plan(grid(1, 1, 3, slots=4), Wanted(Mesh(pp=2, ep=2), cells=4, spares=2))
    assert found.cells == (0, 1, 2)
    assert found.notes[0] == "3 of 4 cells fit: 12 slots, 4 a cell"
    assert found.notes[-1] == "0 of 2 spares fit"


def test_not_even_one_cell_is_refused_with_the_nearest_that_fits() -> None:
    with pytest.raises(UserError, match=r"a cell \(pp 4 x fsdp 3 x ep 8\) needs 96 slots, the cluster has 64") as error:
        plan(grid(1, 1, 8, slots=8), Wanted(Mesh(pp=4, fsdp=3, ep=8), cells=1))
    assert "fsdp 2: 64 slots; pp 2: 48 slots; ep 4: 48 slots" in error.value.remedy


def test_nodes_that_drain_are_not_used() -> None:
    nodes = [Node("a", "a", 2, draining=True), Node("b", "b", 2)]
    assert set(plan(nodes, Wanted(Mesh(ep=2), cells=1)).nodes().values()) == {"b"}


def test_spares_are_spread_over_zones_then_racks_then_nodes() -> None:
    nodes = grid(zones=2, racks=2, nodes=2, slots=3)
    found = plan(nodes, Wanted(Mesh(ep=2), cells=2, spares=4))
    assert sorted(place.node[:5] for place in found.spares) == ["z0.r0", "z0.r1", "z1.r0", "z1.r1"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Node], Mesh, int]:
    racks = draw(
        st.dictionaries(
            st.sampled_from(["a/r", "a/s", "b/r", "b/s", "c/r"]),
            st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple),
            min_size=1,
        )
    )
    mesh = Mesh(draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 5)))
    return cluster(racks), mesh, draw(st.integers(1, 5))


def can_be_apart(nodes: list[Node], mesh: Mesh, cells: int, level: str) -> bool:
    """By the counting argument alone: no domain is of use beyond one cell's ranks."""
    slots: Counter[tuple[str, ...]] = Counter()
    for node in nodes:
        slots[node.site.domain(level, node.name)] += node.slots
    return sum(min(n, mesh.workers) for n in slots.values()) >= cells * mesh.workers


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_plan_is_sound_and_as_far_apart_as_can_be(case: tuple[list[Node], Mesh, int]) -> None:
    nodes, mesh, cells = case
    total = sum(node.slots for node in nodes)
    if total < mesh.workers:
        with pytest.raises(UserError):
            plan(nodes, Wanted(mesh, cells))
        return
    found = plan(nodes, Wanted(mesh, cells))
    fit = min(cells, total // mesh.workers)
    assert set(found.places) == {Seat(cell, rank) for cell in range(fit) for rank in range(mesh.workers)}
    taken = [*found.places.values(), *found.spares]
    slots = {node.name: node.slots for node in nodes}
    assert sorted(taken) == [(name, slot) for name, n in sorted(slots.items()) for slot in range(n)]
    reached = [level for level in ("node", "rack", "zone") if fit > 1 and most_copies(found, nodes, level) == 1]
    assert found.apart == (reached[-1] if reached else None)
    if fit > 1:
        assert ("node" in reached) == can_be_apart(nodes, mesh, fit, "node")
    if mesh.ep == 1 and fit > 1:  # no groups to keep whole: then racks and zones follow from counting too
        assert found.apart == next((v for v in ("zone", "rack", "node") if can_be_apart(nodes, mesh, fit, v)), None)


@pytest.mark.parametrize(
    ("mesh", "cells", "racks", "zones"),
    [
        (Mesh(16, 1, 64), 16, 128, 4),
        (Mesh(16, 1, 64), 15, 128, 3),
        (Mesh(16, 1, 8), 126, 128, 4),
        (Mesh(), 16384, 1, 1),
    ],
    ids=str,
)
def test_2048_nodes_of_8(mesh: Mesh, cells: int, racks: int, zones: int) -> None:
    nodes = grid(zones, racks // zones, 2048 * zones // racks // zones, 8)
    found = plan(nodes, Wanted(mesh, cells))
    assert len(found.places) == cells * mesh.workers
    assert set(nodes_of_groups(found)) == {max(1, mesh.ep // 8)}
    if racks > 1:
        assert most_copies(found, nodes, "rack") == 1
        assert most_copies(found, nodes, "zone") == -(-cells // zones)
