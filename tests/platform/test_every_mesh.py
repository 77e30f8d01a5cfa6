"""From every mesh to every other, in memory: the real model's state, to the bit, each range once and evenly. The ranks
are made one after the other in this process; on real processes: `test_layouts_in_memory.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest

from shoal.plan import Mesh, Site
from shoal.plan.reshape.overlap import overlaps
from shoal.plan.reshape.place import Survivor, place
from shoal_core.ckpt import plan
from tests.support import meshes
from tests.support.meshes import Layout, layout

FEW = [
    layout(1),
    layout(3),
    layout(4, ep=2, moved=True),
    layout(4, ep=4, moved=True),
    layout(2, pp=2, schedule="zbv"),
    layout(4, pp=2, ep=2, schedule="1f1b"),
]
MANY = [
    *FEW,
    layout(2),
    layout(4),
    layout(2, ep=2),
    layout(6, ep=2),
    layout(4, ep=4, dispatch="hierarchical", ep_node=2),
    layout(2, pp=2, schedule="1f1b"),
    layout(2, pp=2, schedule="interleaved"),
    layout(2, pp=2, schedule="zb1p"),
    layout(4, pp=2, schedule="dualpipe"),
    layout(4, pp=4, schedule="dualpipe"),
    layout(4, pp=2, ep=2, schedule="dualpipev", moved=True),
]


def check(before: Layout, others: Sequence[Layout], sections: str) -> None:
    """Two cells of a mesh, from which one rank after another of each other mesh is filled."""
    held = meshes.memories(before, sections)
    holders = {f"{cell}.{rank}": held[rank] for cell, rank in product((0, 1), range(before.workers))}
    for after in others:
        gave: Counter[str] = Counter()
        for rank, replica in enumerate(meshes.shards(after, sections)):
            given, size = meshes.fill(replica, holders, turn=rank)
            assert meshes.differing(replica, before) == [], (before, after)
            assert given.total() == size
            gave += given
        assert max(gave.values()) <= 1.25 * gave.total() / len(holders), (before, after)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """This state's parts are as small against it as a large one's."""
    monkeypatch.setattr(plan, "LEAST", 256)


@pytest.mark.parametrize("before", FEW, ids=str)
def test_from_a_mesh_to_every_other(before: Layout) -> None:
    check(before, FEW, "all")


@pytest.mark.long
@pytest.mark.parametrize("sections", meshes.SECTIONS)
@pytest.mark.parametrize("before", MANY, ids=str)
def test_from_each_of_many_meshes_to_every_other(before: Layout, sections: str) -> None:
    check(before, MANY, sections)


@pytest.mark.parametrize(
    ("before", "after", "cells", "most"),
    [
        (layout(4), layout(3), 2, 1.25),
        (layout(3), layout(2), 2, 1.35),  # the middle third is asked for by all
        (layout(4, ep=4, moved=True), layout(2, ep=2), 3, 1.25),
        (layout(4, pp=4, schedule="1f1b"), layout(2, pp=2, schedule="1f1b"), 3, 1.75),  # MTP is all in the last stage
        (layout(2, pp=2, schedule="1f1b"), layout(1), 3, 1.25),
        (layout(4, pp=2, ep=2, schedule="1f1b"), layout(2, ep=2), 3, 1.25),
    ],
    ids=str,
)
def test_who_lost_a_fellow_is_seated_where_little_moves(before: Layout, after: Layout, cells: int, most: float) -> None:
    """Of two cells one lost a worker, so that the others of it hold an older state, and each range has one holder: all
    of them on the planner's seats. What a worker has it does not ask for; of the rest the busiest gives at most so many
    times the mean."""
    held = meshes.memories(before, "all")
    holders = {f"0.{rank}": held[rank] for rank in range(before.workers)}
    living = {who: Survivor(who, rank) for rank, who in enumerate(holders)}
    living |= {f"1.{rank}": Survivor(f"1.{rank}", None) for rank in range(before.workers - 1)}
    old, new = (Mesh.of(dict(one.parallel), one.workers) for one in (before, after))
    crews = place(living, new, cells, overlaps(old, new, 0.5), lambda node: Site()).crews
    gave: Counter[str] = Counter()
    for number, (crew, (rank, replica)) in enumerate(product(crews, enumerate(meshes.shards(after, "all")))):
        given, size = meshes.fill(replica, holders, crew[rank], number)
        assert meshes.differing(replica, before) == []
        assert given.total() == size
        gave += Counter({who: sent for who, sent in given.items() if who != crew[rank]})
    assert max(gave.values()) <= most * gave.total() / len(holders)
