"""Going on inside a local cluster: what calls `ray.init` must run on one of its nodes.

A shell with `shoal cluster env` has the cluster's addresses but its own network, where the cluster's workers do not
find the process that gives them work; it would wait for them for ever.
"""

from __future__ import annotations

import os
import sys

from shoal.cluster import connect
from shoal.cluster.processes import MARK
from shoal.cluster.state import known_clusters, load

__all__ = ["go_inside"]


def go_inside() -> None:
    """Return at once if this process needs no other place; else run the same command on the head of the local cluster
    that the environment names, and end with its exit status."""
    name = os.environ.get("SHOAL_CLUSTER", "")
    if MARK in os.environ or name not in known_clusters():
        return
    if os.environ.get("RAY_ADDRESS") == load(name).gcs_address:
        sys.exit(connect.execute(name, [sys.executable, *sys.argv]))
