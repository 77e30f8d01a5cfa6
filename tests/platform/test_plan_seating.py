"""Who gets an empty seat: the controller's decisions over meshes and failure domains."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from shoal.decisions.actions import Form
from shoal.decisions.events import Joined, Lost
from shoal.decisions.modes import Stopping
from shoal.decisions.shape import Shape
from shoal.decisions.spares import spares_wanted
from shoal.decisions.state import State
from shoal.names import seat_name
from shoal.on_ray.nodes import site
from shoal.plan import NOWHERE, Mesh, Node, Seat, Site, cell_mesh
from shoal.protocol.said import Ready
from shoal_core.errors import UserError
from shoal_core.workload import Workload
from shoal_workloads.synthetic import Synthetic, SyntheticConfig
from tests.support.decisions import Stepped

SITES = {"a": Site("r1", "x"), "b": Site("r1", "x"), "c": Site("r2", "x"), "d": Site("r3", "y"), "e": Site("r4", "y")}


class Run(Stepped):
    """Two or more cells of `mesh`, each seat's worker named by it, that train; then what happens to them."""

    def __init__(self, mesh: Mesh, nodes: Mapping[Seat, str], sites: Mapping[str, Site] = SITES) -> None:
        cells = 1 + max(seat.cell for seat in nodes)
        homes = {seat: f"w{seat.cell}.{seat.rank}" for seat in nodes}
        shape = Shape(
            cells, mesh.workers, 100, lambda step, workers: 12, axes=mesh, site=lambda node: sites.get(node, NOWHERE)
        )
        super().__init__(State.new(shape, homes))
        for seat, worker in homes.items():
            self.feed(Joined(worker, nodes[seat], seat))
        for cell in range(cells):
            for worker in self.state.cells[cell].people():
                self.feed(Ready(worker, cell, self.state.cells[cell].attempt))
        assert self.state.live == tuple(range(cells))

    def kill(self, *workers: str) -> dict[int, tuple[str, ...]]:
        """Lose these workers, let all others answer, and give the members of the cells that are formed."""
        actions = [action for worker in workers for action in self.feed(Lost(worker, "gone"))]
        for worker in sorted(self.state.awaited):
            assert isinstance(self.state.mode, Stopping)
            out = self.state.seats[worker].cell in self.state.mode.broken
            actions += self.ack(worker, 0, out=out)
        return {action.cell: action.members for action in actions if isinstance(action, Form)}


def test_a_seat_is_healed_on_its_expert_groups_node() -> None:
    mesh = Mesh(pp=2, ep=2)
    run = Run(mesh, {Seat(c, r): "acbd"[2 * c + r // 2] for c in range(2) for r in range(4)})
    for spare, node in (("s1", "a"), ("s2", "c"), ("s3", "e")):
        run.feed(Joined(spare, node))
    assert run.kill("w0.2") == {0: ("w0.0", "w0.1", "s2", "w0.3")}


def test_a_seat_is_healed_away_from_the_racks_and_zones_of_its_copies() -> None:
    nodes = {Seat(0, 0): "e", Seat(1, 0): "a", Seat(2, 0): "c"}
    run = Run(Mesh(), nodes)
    for spare, node in (("s1", "b"), ("s2", "c"), ("s3", "d")):
        run.feed(Joined(spare, node))
    assert run.kill("w0.0") == {0: ("s3",)}
    run = Run(Mesh(), nodes)
    for spare, node in (("s1", "a"), ("s2", "b")):  # the copy's own node, and another of its rack
        run.feed(Joined(spare, node))
    assert run.kill("w0.0") == {0: ("s2",)}


def test_the_cell_that_misses_least_is_healed_first() -> None:
    nodes = {Seat(c, r): "abc"[c] for c in range(3) for r in range(2)}
    run = Run(Mesh(ep=2), nodes)
    for spare in ("s1", "s2"):
        run.feed(Joined(spare, "d"))
    # two spares are enough for either: cell 0 misses two, cell 1 one
    assert run.kill("w0.0", "w0.1", "w1.0") == {1: ("s1", "w1.1")}


def test_names_and_spares_follow_mesh_and_domains() -> None:
    assert seat_name("run", Seat(1, 5), Mesh(2, 1, 4), "n") == "run/cell1/stage1/shard1@n"
    nodes = [Node(name, name, 3, site=where) for name, where in SITES.items()]
    assert spares_wanted(nodes, ["a", "d"], [], 2, 2) == ["a", "d"]
    assert spares_wanted(nodes, ["a", "d"], ["b"], 2, 2) == ["d"]
    assert spares_wanted(nodes, ["a"], [], 2, 1) == ["a", "d"]  # a seat is empty: one more
    assert spares_wanted(nodes, ["a"], [], 2, 1, avoid={"a", "b"}) == ["c", "d"]
    assert spares_wanted(nodes[:1], ["a"], [], 2, 1, avoid={"a"}) == ["a", "a"]  # there is no other


@pytest.mark.parametrize(
    ("labels", "where"),
    [
        ({}, Site()),
        ({"rack": "r", "zone": "z"}, Site("r", "z")),
        ({"zone": "z", "ray.io/availability-zone": "eu-1a"}, Site("", "eu-1a")),
    ],
)
def test_labels_say_where_a_node_stands(labels: dict[str, str], where: Site) -> None:
    assert site(labels) == where


def test_a_workload_may_name_its_mesh() -> None:
    class Plain(Synthetic):
        mesh = Workload.mesh

    class Staged(Synthetic):
        def mesh(self, workers_per_cell: int) -> dict[str, int]:
            return {"pp": 2, "ep": 2}

    assert cell_mesh(Staged(SyntheticConfig()), 8) == Mesh(2, 2, 2)
    assert cell_mesh(Plain(SyntheticConfig()), 8) == Mesh(ep=8)
    with pytest.raises(UserError, match="workers_per_cell: 6"):
        cell_mesh(Staged(SyntheticConfig()), 6)
