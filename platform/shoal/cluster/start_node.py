"""Starts the Ray processes of one node, inside the node: `python -m shoal.cluster.start_node JSON`.

Imports Ray, waits until its standard input is closed, starts the node, and ends, with 0, when it has joined. Leaves
a keeper behind (a bare Python, 10 MB) to which the kernel hands every orphan of the node: it reaps them, and shows
which processes are the node's. It ends with the last of them.

The node is started as `ray start` does, but for its command line, which takes 3 s to import (0.9 here) and cannot
leave out the Ray client server. Ray's own test clusters (`ray.cluster_utils`) go through the same call.
JSON: `{"head": bool, "params": {...}}`, the keyword arguments of `ray._private.parameter.RayParams`. The password of
the Redis that a head is to use stands in RAY_REDIS_PASSWORD.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def start(spec: str) -> None:
    """Start the node's Ray processes; returns when it is registered (on the head: when the dashboard answers)."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    wanted = json.loads(spec)
    sys.stdin.read()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    params = RayParams(**wanted["params"], redis_password=os.environ.get("RAY_REDIS_PASSWORD", ""))
    Node(params, head=wanted["head"], shutdown_at_exit=False, spawn_reaper=False)


def keep(spec: str, report: int) -> None:
    """Start the node in a child, write its exit status (one byte) to `report`, and reap until no child is left."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    starter = os.fork()
    if starter == 0:
        start(spec)
        return
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return
        if pid == starter:
            os.write(report, bytes([0 if status == 0 else 1]))
            os.close(report)


def main() -> None:
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        keep(sys.argv[1], write)
    else:
        os.close(write)
        # nothing to read: the keeper was killed
        sys.exit((os.read(read, 1) or b"\x01")[0])


if __name__ == "__main__":
    main()
