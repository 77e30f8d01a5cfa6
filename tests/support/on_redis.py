"""A cluster that outlives its head: its control store is on a real Redis."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.cluster import local

__all__ = ["cluster_on_redis"]


@contextmanager
def cluster_on_redis(name: str) -> Iterator[str]:
    """Of three nodes with two slots each; ended with the block."""
    assert shutil.which("redis-server"), "apt-get install redis-server"
    local.up(name, nodes=3, slots=2, on_redis=True)
    try:
        yield name
    finally:
        local.down(name)
