"""Which processes belong to a node, and what can be done to all of them at once.

In netns mode a node's processes are those in its network namespace. In process mode they are the descendants of its
keeper (`start_node`), which carries a mark in its environment and to which the kernel hands every orphan; Ray's own
processes cannot be told by a mark, for they overwrite their environment with a title.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from shoal.cluster.state import ClusterState, NodeState, redis_dir

__all__ = ["MARK", "kill_redis", "mark", "pids_of", "raylet_lives", "redis_pids", "send", "wait_gone"]

MARK = "SHOAL_NODE_OF"
KEEPER = b"shoal.cluster.start_node"
OUTLIVED = 10.0
"""Seconds after which a process that was killed and is still there is given up."""


def mark(state: ClusterState, node: NodeState) -> str:
    """The value of the environment variable `MARK` in the processes started in `node`."""
    return f"{state.id}/{node.name}"


def pids_of(state: ClusterState, node: NodeState) -> list[int]:
    """Living processes (no zombies) of `node`, without its keeper and the cluster's Redis, lowest first."""
    pids = _all()
    if node.namespace:
        try:
            inode = os.stat(f"/run/netns/{node.namespace}").st_ino
        except FileNotFoundError:
            return []
        found = [pid for pid in pids if _net_namespace(pid) == inode]
    else:
        wanted = f"{MARK}={mark(state, node)}".encode()
        found = _with_descendants([pid for pid in pids if wanted in _read(pid, "environ").split(b"\0")], pids)
    return sorted(
        pid for pid in found if pid != os.getpid() and _alive(pid) and _counts(pid) and not _is_redis(state, pid)
    )


def redis_pids(state: ClusterState) -> list[int]:
    """Living processes of the cluster's Redis."""
    return [pid for pid in _all() if _is_redis(state, pid) and _alive(pid)]


def raylet_lives(state: ClusterState, node: NodeState) -> bool:
    """Whether the node's own scheduler, which joins the cluster, is running."""
    return any(_read(pid, "cmdline").split(b"\0")[0].endswith(b"/raylet") for pid in pids_of(state, node))


def send(state: ClusterState, node: NodeState, signum: int) -> tuple[float, list[int]]:
    """Signal every process of `node` in one sweep: the wall time of the first signal and the pids it went to."""
    pids = pids_of(state, node)
    at = time.time()
    reached = [pid for pid in pids if _signal(pid, signum)]
    return at, reached


def wait_gone(state: ClusterState, node: NodeState) -> list[int]:
    """SIGKILL whatever still appears in `node` until nothing is left: the pids that were killed here.

    Raises TimeoutError: a process outlived the kill (in uninterruptible sleep).
    """
    return _kill_all(lambda: pids_of(state, node), f"node {node.name}")


def kill_redis(state: ClusterState) -> list[int]:
    """SIGKILL the cluster's Redis: the pids that were killed. Raises TimeoutError as `wait_gone` does."""
    return _kill_all(lambda: redis_pids(state), "Redis")


def _kill_all(living: Callable[[], list[int]], whose: str) -> list[int]:
    deadline = time.monotonic() + OUTLIVED
    killed: list[int] = []
    looked = 0  # at nothing, one time after the other: who dies may have had a child while the first was taken
    while looked < 2:
        pids = living()
        looked = 0 if pids else looked + 1
        if pids and time.monotonic() > deadline:
            raise TimeoutError(f"{whose}: processes {pids} outlive SIGKILL")
        killed += [pid for pid in pids if _signal(pid, signal.SIGKILL) and pid not in killed]
        time.sleep(0.01)
    return killed


def _all() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _counts(pid: int) -> bool:
    """Whether it is no keeper, nor one that is ending, whose command line is gone before it is a zombie."""
    command = _read(pid, "cmdline")
    return bool(command) and KEEPER not in command


def _alive(pid: int) -> bool:
    return _status(pid)[0] not in "ZX"


def _is_redis(state: ClusterState, pid: int) -> bool:
    """It is known by its program and by its working directory, which no other Redis has."""
    if not state.redis_port or _read(pid, "comm") != b"redis-server\n":
        return False
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(redis_dir(state.name).resolve())
    except OSError:
        return False


def _with_descendants(roots: list[int], pids: list[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid in pids:
        children.setdefault(_status(pid)[1], []).append(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children.get(pid, [])
    return list(found)


def _net_namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return -1


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def _status(pid: int) -> tuple[str, int]:
    """State letter and parent of a process; `("X", 0)` once it is gone."""
    # the command, in parentheses, may hold spaces and parentheses of its own
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[1])) if fields else ("X", 0)


def _signal(pid: int, signum: int) -> bool:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True
