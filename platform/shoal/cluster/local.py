"""A real Ray cluster of several nodes on this machine: start it, add and kill nodes, look at it, take it down.

The head holds no training slots: it runs Ray's control store, the dashboard and the drivers of jobs. Nodes `node1`,
`node2`, ... hold the custom resource `slot`, one for each worker that may train there.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from shoal.cluster import api, assemble, processes
from shoal.cluster.assemble import MAX_NODES, Labels, Say
from shoal.cluster.launch import NODE_LABEL
from shoal.cluster.state import HEAD, ClusterState, NodeState, load, locked, save, state_dir
from shoal_core.errors import UserError

__all__ = [
    "DEFAULT_NAME",
    "OBJECT_STORE_MB",
    "Description",
    "Kill",
    "NodeStatus",
    "add_node",
    "describe",
    "down",
    "kill_node",
    "restart_head",
    "up",
]

DEFAULT_NAME = "local"
OBJECT_STORE_MB = 200
WORD = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
LABEL_KEY = re.compile(rf"({WORD}/)?{WORD}")
LABEL_VALUE = re.compile(WORD)


@dataclass(frozen=True)
class Kill:
    """A node's death: `time` is the wall time (unix, s) before the first SIGKILL, `seconds` until all were gone."""

    node: str
    time: float
    seconds: float
    pids: list[int]


@dataclass(frozen=True)
class NodeStatus:
    """A node as it was made and as Ray sees it: `state` is `ALIVE`, `DEAD`, or `UNKNOWN` to Ray."""

    name: str
    ip: str
    slots: int
    cpus: int
    labels: dict[str, str]
    state: str
    node_id: str
    pids: list[int]


@dataclass(frozen=True)
class Description:
    """A cluster and its nodes, the head first. `error` says why Ray could not be asked."""

    name: str
    mode: str
    phase: str
    gcs_address: str
    dashboard_url: str
    nodes: list[NodeStatus]
    error: str = ""


def up(
    name: str = DEFAULT_NAME,
    *,
    nodes: int = 4,
    slots: int = 2,
    cpus: int | None = None,
    mode: str = "auto",
    dashboard_port: int = 8265,
    object_store_mb: int = OBJECT_STORE_MB,
    labels: Labels | None = None,
    gpus: int = 0,
    on_redis: bool = False,
    say: Say = lambda line: None,
) -> ClusterState:
    """Start a cluster of a head and `nodes` nodes with `slots` slots each, and return when all have joined.

    `cpus`: CPUs that Ray may give to tasks and actors on each node (default: `slots`). `labels`: Ray node labels by
    node name, `*` for all nodes. `gpus`: GPUs that Ray is to count on each node (for tests: no GPU need be there).
    `on_redis`: Ray's control store is on a Redis of the cluster's own, so that the head
    may die (`restart_head`), and a node `steady` is there for drivers and controllers. `say` receives progress lines.
    What is left of a broken cluster of that name is cleared away first; whatever goes wrong (Ctrl-C too), nothing is
    left behind.

    Raises:
        UserError: a bad argument, a name or port in use, no right to make namespaces, no Redis, a node that does not
            start.
    """
    _check(nodes, slots, labels or {})
    if not 1 <= dashboard_port <= 65535:
        raise UserError(f"--dashboard-port {dashboard_port}: not a port", "1 to 65535")
    say(f"{nodes} nodes of {slots} slots, cluster {name!r}")
    folder = state_dir(name)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(name, wait=False):
        if (folder / "cluster.json").exists():
            _clear_broken(load(name), say)
        try:
            mode = assemble.choose_mode(mode, say)
            state = assemble.claim(name, mode, dashboard_port, object_store_mb, on_redis=on_redis)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            state = assemble.with_nodes(state, nodes, slots, slots if cpus is None else cpus, labels or {})
            state = replace(state, nodes=tuple(replace(node, gpus=gpus if node.slots else 0) for node in state.nodes))
            save(state)
            assemble.start(state, list(state.nodes), say)
            state = replace(state, phase="up")
            save(state)
        except BaseException:
            say("taking down what was started")
            assemble.destroy(state)
            shutil.rmtree(folder, ignore_errors=True)
            raise
    say(f"up: dashboard {state.dashboard_url}, Ray at {state.gcs_address}")
    return state


def _clear_broken(old: ClusterState, say: Say) -> None:
    """Clear away what is left of a cluster. Raises UserError: it is up."""
    name = old.name
    if old.phase == "up" and processes.pids_of(old, old.head):
        raise UserError(f"a cluster named {name!r} is up", f"shoal cluster down --name {name}, or give another --name")
    if old.phase == "up" and old.redis_port and any(processes.pids_of(old, node) for node in old.nodes):
        raise UserError(f"a cluster named {name!r} is up but for its head", f"shoal cluster restart-head --name {name}")
    say(f"clearing away what is left of a broken cluster {name!r}")
    assemble.destroy(old)


def add_node(
    name: str = DEFAULT_NAME,
    *,
    slots: int = 2,
    cpus: int | None = None,
    labels: Mapping[str, str] | None = None,
    say: Say = lambda line: None,
) -> NodeState:
    """Add one node, named by the next number, and return when it has joined. Raises UserError."""
    _check(1, slots, {"*": labels or {}})
    load(name)
    with locked(name):
        state = load(name)
        number = 1 + max(int(n.name.removeprefix("node")) for n in state.nodes if not (n.is_head or n.is_steady))
        node = assemble.make_node(state, number, slots, slots if cpus is None else cpus, labels or {})
        state = state.with_node(node)
        save(state)
    try:
        assemble.start(state, [node], say)
    except BaseException:
        assemble.remove_nodes(state, [node])
        with locked(name):
            current = load(name)
            save(replace(current, nodes=tuple(n for n in current.nodes if n != node)))
        raise
    return node


def kill_node(name: str, node: str) -> Kill:
    """SIGKILL every process of a node, as if its machine had died. Its logs stay until the cluster is taken down.

    Raises UserError: no such node, a head whose death would end the cluster, or a node that is dead already.
    """
    state = load(name)
    target = state.node(node)
    if target.is_head and not state.redis_port:
        raise UserError(
            f"cluster {name}: the head holds the cluster's only record",
            f"shoal cluster down --name {name}; a head that may die: shoal cluster up --redis",
        )
    started = time.monotonic()
    at, pids = processes.send(state, target, signal.SIGKILL)
    if not pids:
        raise UserError(f"cluster {name}: {node} is dead already", "shoal cluster status shows who lives")
    pids += processes.wait_gone(state, target)
    return Kill(node, at, time.monotonic() - started, sorted(set(pids)))


def restart_head(name: str, say: Say = lambda line: None) -> None:
    """Start a dead head again, as it was, on the cluster's Redis; return when it is up. It has a new Ray node id.

    Raises UserError: the head lives, its record died with it, or it does not start.
    """
    load(name)
    with locked(name):
        state = load(name)
        if not state.redis_port:
            raise UserError(
                f"cluster {name} was made without Redis: its record died with its head",
                f"shoal cluster down --name {name}, then `up --redis`",
            )
        if processes.pids_of(state, state.head):
            raise UserError(f"cluster {name}: the head lives", f"shoal cluster kill-node head --name {name}")
        try:
            assemble.start(state, [state.head], say)
        except BaseException:
            processes.wait_gone(state, state.head)
            raise


def down(name: str = DEFAULT_NAME, say: Say = lambda line: None) -> None:
    """Kill every process of the cluster and remove its namespaces, its bridge and all of its files.

    Raises UserError: there is no such cluster, or another command is at work on it.
    """
    load(name)
    with locked(name, wait=False):
        state = load(name)
        say(f"taking down cluster {name!r}: {len(state.nodes)} nodes")
        assemble.destroy(state)
        shutil.rmtree(state_dir(name))
    say("down: no process, namespace or file of it is left")


def describe(name: str = DEFAULT_NAME) -> Description:
    """The cluster as it was made and as Ray sees it. Raises UserError: there is no such cluster."""
    state = load(name)
    seen: dict[str, dict[str, object]] = {}
    error = ""
    try:
        # of a head that came back Ray lists the dead one too: the living is the one that counts
        for entry in sorted(api.ray_nodes(state), key=lambda entry: entry["state"] == "ALIVE"):
            seen[HEAD if entry["is_head_node"] else entry["labels"].get(NODE_LABEL, "")] = entry
    except OSError as failure:
        error = f"{state.dashboard_url} does not answer: {failure}"
        if state.redis_port and not processes.pids_of(state, state.head):
            error = f"the head is dead: shoal cluster restart-head --name {name}"
    nodes = []
    for node in state.nodes:
        entry = seen.get(node.name, {})
        nodes.append(
            NodeStatus(
                node.name,
                node.ip,
                node.slots,
                node.cpus,
                node.labels,
                str(entry.get("state", "UNKNOWN")),
                str(entry.get("node_id", "")),
                processes.pids_of(state, node),
            )
        )
    return Description(state.name, state.mode, state.phase, state.gcs_address, state.dashboard_url, nodes, error)


def _check(nodes: int, slots: int, labels: Labels) -> None:
    if not 1 <= nodes <= MAX_NODES:
        raise UserError(f"--nodes {nodes}: not a number of nodes", f"1 to {MAX_NODES}")
    if slots < 1:
        raise UserError(f"--slots {slots}: a node holds at least one worker", "--slots 1 or more")
    names = {"*", *(f"node{i + 1}" for i in range(nodes))}
    if unknown := sorted(set(labels) - names):
        raise UserError(f"--labels: no node {', '.join(unknown)}", f"node1 to node{nodes}, or * for all")
    for key, value in (pair for own in labels.values() for pair in own.items()):
        if not (LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value)) or key.startswith("ray.io/"):
            raise UserError(
                f"--labels: {key + '=' + value!r} is not a label of a Ray node",
                "KEY=VALUE of letters, digits, '-', '_' and '.', the key with a prefix like example.com/ if you want",
            )
