"""From every mesh to every other, in memory: the real model's state, to the bit, each range once and evenly. The ranks
are made one after the other in this process; on real processes: `test_layouts_in_memory.py`."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from shoal_core.ckpt import plan
from tests.support import meshes
from tests.support.meshes import Layout, layout

LAYOUTS = [
    layout(1),
    layout(2),
    layout(3),
    layout(4),
    layout(2, ep=2),
    layout(4, ep=2),
    layout(4, ep=2, moved=True),
    layout(6, ep=2),
    layout(4, ep=4, moved=True),
    layout(4, ep=4, dispatch="hierarchical", ep_node=2),
    layout(2, pp=2, schedule="1f1b"),
    layout(2, pp=2, schedule="interleaved"),
    layout(2, pp=2, schedule="zb1p"),
    layout(2, pp=2, schedule="zbv"),
    layout(4, pp=2, schedule="dualpipe"),
    layout(4, pp=4, schedule="dualpipe"),
    layout(4, pp=2, ep=2, schedule="dualpipev"),
    layout(4, pp=2, ep=2, schedule="1f1b", moved=True),
]


@pytest.mark.parametrize("sections", meshes.SECTIONS)
@pytest.mark.parametrize("before", LAYOUTS, ids=str)
def test_from_a_mesh_to_every_other(before: Layout, sections: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LEAST", 256)  # this state's parts are as small against it as a large one's
    held = meshes.memories(before, sections)
    holders = {f"{cell}.{rank}": one for cell, rank in product((0, 1), range(before.workers)) for one in [held[rank]]}
    for after in LAYOUTS:
        gave: Counter[str] = Counter()
        for place, replica in enumerate(meshes.shards(after, sections)):
            given, size = meshes.fill(replica, holders, turn=place)
            assert meshes.differing(replica, before) == [], (before, after)
            assert given.total() == size
            gave += given
        print(f"BUSY {before} -> {after}: {max(gave.values()) * len(holders) / gave.total():.2f}")
