"""A real Ray cluster of several nodes on this machine: start it, add and kill nodes, look at it, take it down.

The head holds no training slots: it runs Ray's control store, the dashboard and the drivers of jobs. Nodes `node1`,
`node2`, ... hold the custom resource `slot`, one for each worker that may train there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from shoal.cluster import api, namespaces, processes
from shoal.cluster.launch import NODE_LABEL, launch, log_file
from shoal.cluster.state import HEAD, ClusterState, NodeState, load, locked, save, state_dir, token_file
from shoal.errors import UserError

__all__ = ["DEFAULT_NAME", "Description", "Kill", "NodeStatus", "add_node", "describe", "down", "kill_node", "up"]

DEFAULT_NAME = "local"
START_TIMEOUT_S = 120.0
OBJECT_STORE_MB = 200
MAX_NODES = 200

Say = Callable[[str], None]
Labels = Mapping[str, Mapping[str, str]]


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
    say: Say = lambda line: None,
) -> ClusterState:
    """Start a cluster of a head and `nodes` nodes with `slots` slots each, and return when all have joined.

    `cpus`: CPUs that Ray may give to tasks and actors on each node (default: `slots`). `labels`: Ray node labels by
    node name, `*` for all nodes. `say` receives progress lines. What is left of a broken cluster of that name is
    cleared away first; whatever goes wrong (Ctrl-C too), nothing is left behind.

    Raises:
        UserError: a bad argument, a name or port in use, no right to make namespaces, a node that does not start.
    """
    _check(nodes, slots, labels or {})
    say(f"{nodes} nodes of {slots} slots, cluster {name!r}")
    folder = state_dir(name)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(name, wait=False):
        if (folder / "cluster.json").exists():
            old = load(name)
            if old.phase == "up" and processes.pids_of(old, old.head):
                raise UserError(
                    f"a cluster named {name!r} is up", f"shoal cluster down --name {name}, or give another --name"
                )
            say(f"clearing away what is left of a broken cluster {name!r}")
            _destroy(old)
        try:
            state = _found(name, _choose_mode(mode, say), dashboard_port, object_store_mb)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            state = _with_nodes(state, nodes, slots, slots if cpus is None else cpus, labels or {})
            save(state)
            _start(state, list(state.nodes), say)
            state = replace(state, phase="up")
            save(state)
        except BaseException:
            say("taking down what was started")
            _destroy(state)
            shutil.rmtree(folder, ignore_errors=True)
            raise
    say(f"up: dashboard {state.dashboard_url}, Ray at {state.gcs_address}")
    return state


def add_node(
    name: str = DEFAULT_NAME,
    *,
    slots: int = 2,
    cpus: int | None = None,
    labels: Mapping[str, str] | None = None,
    say: Say = lambda line: None,
) -> NodeState:
    """Add one node, named by the next number, and return when it has joined. Raises UserError."""
    _check(1, slots, {})
    load(name)
    with locked(name):
        state = load(name)
        number = 1 + max(int(n.name.removeprefix("node")) for n in state.nodes if not n.is_head)
        node = _node(state, number, slots, slots if cpus is None else cpus, labels or {})
        state = state.with_node(node)
        save(state)
    try:
        _start(state, [node], say)
    except BaseException:
        _remove_nodes(state, [node])
        with locked(name):
            current = load(name)
            save(replace(current, nodes=tuple(n for n in current.nodes if n != node)))
        raise
    return node


def kill_node(name: str, node: str) -> Kill:
    """SIGKILL every process of a node, as if its machine had died. Its logs stay until the cluster is taken down.

    Raises UserError: no such node, the head, or a node that is dead already.
    """
    state = load(name)
    target = state.node(node)
    if target.is_head:
        raise UserError(
            f"cluster {name}: the head holds the cluster's only record", f"shoal cluster down --name {name}"
        )
    started = time.monotonic()
    at, pids = processes.send(state, target, signal.SIGKILL)
    if not pids:
        raise UserError(f"cluster {name}: {node} is dead already", "shoal cluster status shows who lives")
    pids += processes.wait_gone(state, target)
    return Kill(node, at, time.monotonic() - started, sorted(set(pids)))


def down(name: str = DEFAULT_NAME, say: Say = lambda line: None) -> None:
    """Kill every process of the cluster and remove its namespaces, its bridge and all of its files.

    Raises UserError: there is no such cluster, or another command is at work on it.
    """
    load(name)
    with locked(name, wait=False):
        state = load(name)
        say(f"taking down cluster {name!r}: {len(state.nodes)} nodes")
        _destroy(state)
        shutil.rmtree(state_dir(name))
    say("down: no process, namespace or file of it is left")


def describe(name: str = DEFAULT_NAME) -> Description:
    """The cluster as it was made and as Ray sees it. Raises UserError: there is no such cluster."""
    state = load(name)
    seen: dict[str, dict[str, object]] = {}
    error = ""
    try:
        for entry in api.ray_nodes(state):
            node_name = HEAD if entry["is_head_node"] else entry["labels"].get(NODE_LABEL, "")
            seen[node_name] = entry
    except OSError as failure:
        error = f"{state.dashboard_url} does not answer: {failure}"
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


def _choose_mode(mode: str, say: Say) -> str:
    if mode not in ("auto", "netns", "process"):
        raise UserError(f"--mode {mode}: not a mode", "auto, netns or process")
    if mode == "process":
        return mode
    reason = namespaces.refusal()
    if not reason:
        say("mode netns: a network namespace a node")
        return "netns"
    if mode == "netns":
        raise UserError(f"--mode netns: namespaces cannot be made here: {reason}", "run as root, or --mode process")
    say(f"mode process: plain processes on 127.0.0.1, as namespaces cannot be made here ({reason})")
    return "process"


def _found(name: str, mode: str, dashboard_port: int, object_store_mb: int) -> ClusterState:
    """Claim the cluster's network or ports, and write its state and token."""
    state = ClusterState(
        name=name,
        id=secrets.token_hex(6),
        mode=mode,
        phase="starting",
        gcs_port=6379,
        dashboard_port=dashboard_port,
        metrics_port=44227,
        object_store_mb=object_store_mb,
        temp_dir="",
    )
    if mode == "netns":
        bridge, subnet = namespaces.claim_bridge()
        head = NodeState(HEAD, f"{subnet}.2", 0, 0, namespace=f"shoal-{name}-{HEAD}")
        state = replace(state, bridge=bridge, subnet=subnet, nodes=(head,))
    else:
        _check_port(dashboard_port)
        gcs_port, metrics_port = _free_ports(2)
        head = NodeState(HEAD, "127.0.0.1", 0, 0)
        state = replace(state, gcs_port=gcs_port, metrics_port=metrics_port, nodes=(head,))
    state = replace(state, temp_dir=tempfile.mkdtemp(prefix=f"shoal-{name}-"))
    save(state)
    token = token_file(name)
    token.unlink(missing_ok=True)
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return state


def _node(state: ClusterState, number: int, slots: int, cpus: int, labels: Mapping[str, str]) -> NodeState:
    name = f"node{number}"
    if state.mode == "process":
        return NodeState(name, "127.0.0.1", slots, cpus, dict(labels))
    if number > MAX_NODES:
        raise UserError(f"cluster {state.name}: {number} nodes were made", "take it down and start again")
    return NodeState(name, f"{state.subnet}.{10 + number}", slots, cpus, dict(labels), f"shoal-{state.name}-{name}")


def _with_nodes(state: ClusterState, nodes: int, slots: int, cpus: int, labels: Labels) -> ClusterState:
    for number in range(1, nodes + 1):
        own = {**labels.get("*", {}), **labels.get(f"node{number}", {})}
        state = state.with_node(_node(state, number, slots, cpus, own))
    return state


def _start(state: ClusterState, nodes: list[NodeState], say: Say) -> None:
    """Start `nodes` at the same time (the head's control store before the others) and wait until all have joined."""
    started = time.monotonic()
    deadline = started + START_TIMEOUT_S

    def tell(line: str) -> None:
        say(f"{time.monotonic() - started:5.1f} s  {line}")

    waiting: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for node in nodes:
            if node.namespace:
                namespaces.add_node(node.namespace, state.bridge, node.ip)
            waiting[node.name] = launch(state, node)
            if node.is_head:
                _wait_for_port(state, waiting[HEAD], deadline)
                tell("control store answers")
        while waiting:
            for name in [name for name, process in waiting.items() if process.poll() is not None]:
                if waiting.pop(name).returncode:
                    raise _not_started(state, name)
                tell(f"{name} joined" if name != HEAD else "head is up, with its dashboard")
            if time.monotonic() > deadline:
                raise _not_started(state, next(iter(waiting)))
            time.sleep(0.05)
        _wait_for_nodes(state, nodes, deadline)
    except BaseException:
        for process in waiting.values():
            process.kill()
            process.wait()
        raise


def _wait_for_port(state: ClusterState, head: subprocess.Popen[bytes], deadline: float) -> None:
    while time.monotonic() < deadline and head.poll() is None:
        try:
            socket.create_connection((state.head.ip, state.gcs_port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise _not_started(state, HEAD)


def _wait_for_nodes(state: ClusterState, nodes: list[NodeState], deadline: float) -> None:
    """Return when Ray lists all of `nodes` as alive."""
    missing = {node.name for node in nodes if not node.is_head}
    while True:
        try:
            seen = {e["labels"].get(NODE_LABEL) for e in api.ray_nodes(state) if e["state"] == "ALIVE"}
        except OSError:
            seen = set()
        if missing <= seen:
            return
        if time.monotonic() > deadline:
            raise _not_started(state, sorted(missing - seen)[0])
        time.sleep(0.1)


def _not_started(state: ClusterState, node: str) -> UserError:
    log = log_file(state.name, node)
    tail = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:]) if log.exists() else ""
    return UserError(
        f"cluster {state.name}: {node} did not start within {START_TIMEOUT_S:.0f} s\n{tail}",
        "free memory and CPU on this machine, then try again with fewer --nodes",
    )


def _destroy(state: ClusterState) -> None:
    """Kill all processes of the cluster and remove all it made, apart from its state directory."""
    _remove_nodes(state, list(state.nodes))
    if state.bridge:
        namespaces.delete_bridge(state.bridge)
    shutil.rmtree(state.temp_dir, ignore_errors=True)


def _remove_nodes(state: ClusterState, nodes: list[NodeState]) -> None:
    for node in nodes:
        processes.send(state, node, signal.SIGKILL)
    for node in nodes:
        processes.wait_gone(state, node)
        if node.namespace:
            namespaces.delete_node(node.namespace, state.bridge, node.ip)
        shutil.rmtree(os.path.join(state.temp_dir, node.name), ignore_errors=True)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--dashboard-port {port} cannot be used: {error}", "give a free port") from error


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago (all different)."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
