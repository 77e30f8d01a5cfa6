"""How processes share the tests out: a file stays together, all files that start or look for Ray clusters are done by
one of them, and what takes longest begins first, so that all end at about the same time."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

__all__ = ["Rooms", "turn"]

TESTS = Path(__file__).parents[1]
CLUSTERS = "clusters"
LONGEST_FIRST = (CLUSTERS, "workloads", "platform")
"""The room of clusters, and folders."""


class Rooms(LoadScopeScheduling):
    """Gives a process whole rooms. (xdist's own `loadgroup` goes by a name of an item that pytest 9.2 has no more: its
    groups are not kept together, and nothing says so.)"""

    def _split_scope(self, nodeid: str) -> str:
        return room(TESTS.parent / nodeid.partition("::")[0])


@cache
def room(file: Path) -> str:
    """Where a file's tests are done: one cluster is up at a time, and none while its lack is looked for."""
    of_clusters = file.parent.name == "cluster" or "pytest.mark.cluster" in file.read_text()
    return CLUSTERS if of_clusters else str(file.relative_to(TESTS))


def turn(file: Path) -> int:
    """When a file's tests are handed out."""
    kind = room(file).partition("/")[0]
    return LONGEST_FIRST.index(kind) if kind in LONGEST_FIRST else len(LONGEST_FIRST)
