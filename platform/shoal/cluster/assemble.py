"""The making and unmaking of a local cluster: its network and ports, its nodes started together, all of it removed."""

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
from dataclasses import replace

from shoal.cluster import api, namespaces, processes, redis
from shoal.cluster.launch import NODE_LABEL, go, launch, log_file
from shoal.cluster.state import HEAD, STEADY, ClusterState, NodeState, save, token_file
from shoal_core.errors import UserError

__all__ = [
    "MAX_NODES",
    "Labels",
    "Say",
    "check_room_for_sockets",
    "choose_mode",
    "claim",
    "destroy",
    "make_node",
    "remove_nodes",
    "start",
    "stop",
    "with_nodes",
]

START_TIMEOUT_S = 420.0
RAY_GIVES_UP_S = 25.0  # a start that failed after less was not for want of processors
MAX_NODES = 200
SOCKET_BYTES = 107
"""Of the path of a Unix socket: the kernel takes no more."""
LONGEST_SOCKET = "session_2026-01-31_23-59-59_999999_{pid}/sockets/dash_MetricsHead"
"""Of those in the nodes' folders, in the head's, as Ray names it; `pid`: of the process that starts the head."""

Say = Callable[[str], None]
Labels = Mapping[str, Mapping[str, str]]


def choose_mode(mode: str, say: Say) -> str:
    """`netns` or `process`, as asked or as this machine allows. Raises UserError: not a mode, or not possible here."""
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


def claim(name: str, mode: str, dashboard_port: int, object_store_mb: int, *, on_redis: bool = False) -> ClusterState:
    """Claim the cluster's network or ports, and write its state, with the head alone, and its token.

    Raises UserError: the temporary folder's path is too long, the dashboard's port is in use, no network is free, or
    there is no Redis to be `on_redis`.
    """
    if on_redis:
        redis.check()
    state = ClusterState(
        name=name,
        id=secrets.token_hex(6),
        mode=mode,
        phase="starting",
        gcs_port=6379,
        dashboard_port=dashboard_port,
        metrics_port=44227,
        object_store_mb=object_store_mb,
        temp_dir=tempfile.mkdtemp(prefix=f"shoal-{name}-"),
    )
    try:
        check_room_for_sockets(state.temp_dir, os.getpid())
        if mode == "netns":
            bridge, subnet = namespaces.claim_bridge()
            head = NodeState(HEAD, f"{subnet}.2", 0, 0, namespace=f"{bridge}-{HEAD}")
            state = replace(state, bridge=bridge, subnet=subnet, nodes=(head,), redis_port=6380 if on_redis else 0)
        else:
            _check_port(dashboard_port)
            gcs_port, metrics_port, redis_port = _free_ports(3)
            head = NodeState(HEAD, "127.0.0.1", 0, 0)
            state = replace(state, gcs_port=gcs_port, metrics_port=metrics_port, nodes=(head,))
            state = replace(state, redis_port=redis_port if on_redis else 0)
        save(state)
        token = token_file(name)
        token.unlink(missing_ok=True)
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except BaseException:
        destroy(state)
        raise
    return state


def check_room_for_sockets(temp_dir: str, pid: int) -> None:
    """See that Ray can make its Unix sockets in a cluster's temporary folder: the head would never start otherwise.
    `pid`: one as long as that of the process that starts the head. Raises UserError: the path is too long."""
    path = os.path.join(temp_dir, HEAD, LONGEST_SOCKET.format(pid=pid))
    length = len(os.fsencode(path))
    if length > SOCKET_BYTES:
        raise UserError(
            f"the temporary folder {os.path.dirname(temp_dir)} has too long a path: Ray's Unix sockets in it would have"
            f" paths of {length} bytes, and the kernel takes {SOCKET_BYTES}",
            f"in TMPDIR a folder whose path is {length - SOCKET_BYTES} bytes shorter, like /tmp, or a shorter --name",
        )


def make_node(state: ClusterState, number: int, slots: int, cpus: int, labels: Mapping[str, str]) -> NodeState:
    """The state of node number `number` (from 1), of which nothing is made yet. Raises UserError: too many nodes."""
    name = f"node{number}"
    if state.mode == "process":
        return NodeState(name, "127.0.0.1", slots, cpus, dict(labels))
    if number > MAX_NODES:
        raise UserError(f"cluster {state.name}: {number} nodes were made", "take it down and start again")
    return NodeState(name, f"{state.subnet}.{10 + number}", slots, cpus, dict(labels), f"{state.bridge}-{name}")


def with_nodes(state: ClusterState, nodes: int, slots: int, cpus: int, labels: Labels) -> ClusterState:
    """`state` with nodes 1 to `nodes`, and the steady one if the head may die; nothing of them is made yet."""
    if state.redis_port:
        steady = NodeState(STEADY, "127.0.0.1", 0, 0)
        if state.mode == "netns":
            steady = NodeState(STEADY, f"{state.subnet}.3", 0, 0, namespace=f"{state.bridge}-{STEADY}")
        state = state.with_node(steady)
    for number in range(1, nodes + 1):
        own = {**labels.get("*", {}), **labels.get(f"node{number}", {})}
        state = state.with_node(make_node(state, number, slots, cpus, own))
    return state


def start(state: ClusterState, nodes: list[NodeState], say: Say) -> None:
    """Start `nodes`, the head first, then as many at a time as there are processors, and wait until all have joined.

    Under load Ray gives a node up after 30 s: it is waited for while its raylet lives, and started again otherwise. One
    that fails at once is tried twice. What was started is left to the caller to remove.
    Raises UserError: a node does not start.
    """
    began = time.monotonic()
    deadline = began + START_TIMEOUT_S

    def tell(line: str) -> None:
        say(f"{time.monotonic() - began:5.1f} s  {line}")

    ready: dict[str, subprocess.Popen[bytes]] = {}  # have imported Ray, and wait for the word
    going: dict[str, subprocess.Popen[bytes]] = {}
    went: dict[str, float] = {}
    tried: set[str] = set()
    try:
        for node in nodes:
            if node.namespace and not namespaces.exists(node.namespace):
                namespaces.add_node(node.namespace, state.bridge, node.ip)
            if node.is_head and state.redis_port:
                redis.start(state)
                tell("Redis is up")
            ready[node.name] = launch(state, node)
        while ready or going:
            while ready and HEAD not in going and len(going) < max(2, os.cpu_count() or 1):
                name = next(iter(ready))
                going[name] = ready.pop(name)
                went[name] = time.monotonic()
                go(going[name])
            for name in [name for name, process in going.items() if process.poll() is not None]:
                if going.pop(name).returncode == 0:
                    tell(f"{name} joined" if name != HEAD else "head is up, with its dashboard")
                elif processes.raylet_lives(state, state.node(name)):
                    tell(f"{name} is slow to join: waiting on")
                    _wait_for_nodes(state, [state.node(name)], deadline)
                    tell(f"{name} joined")
                elif name not in tried or time.monotonic() - went[name] > RAY_GIVES_UP_S:
                    tell(f"{name} did not start: once more")
                    tried.add(name)
                    stop(state, state.node(name))
                    ready = {name: launch(state, state.node(name)), **ready}
                else:
                    raise _not_started(state, name, "twice")
            if time.monotonic() > deadline:
                raise _not_started(state, next(iter([*going, *ready])), f"within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        _wait_for_nodes(state, nodes, deadline)
    finally:
        for process in (*ready.values(), *going.values()):
            process.kill()
            process.wait()


def _wait_for_nodes(state: ClusterState, nodes: list[NodeState], deadline: float) -> None:
    """Return when Ray lists all of `nodes` as alive."""
    missing = {node.name for node in nodes}
    while True:
        try:
            seen = {e["labels"].get(NODE_LABEL) for e in api.ray_nodes(state) if e["state"] == "ALIVE"}
        except OSError:
            seen = set()
        if missing <= seen:
            return
        if time.monotonic() > deadline:
            raise _not_started(state, sorted(missing - seen)[0], f"within {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _not_started(state: ClusterState, node: str, how: str) -> UserError:
    log = log_file(state.name, node)
    tail = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:]) if log.exists() else ""
    return UserError(
        f"cluster {state.name}: {node} did not start ({how})\n{tail}",
        "free memory and CPU on this machine, then try again with fewer --nodes",
    )


def destroy(state: ClusterState) -> None:
    """Kill all processes of the cluster and remove all it made, apart from its state directory."""
    redis.remove(state)
    remove_nodes(state, list(state.nodes))
    if state.bridge:
        namespaces.delete_bridge(state.bridge)
    shutil.rmtree(state.temp_dir, ignore_errors=True)


def remove_nodes(state: ClusterState, nodes: list[NodeState]) -> None:
    """Kill all processes of `nodes` and remove their namespaces and files."""
    for node in nodes:
        processes.send(state, node, signal.SIGKILL)
    for node in nodes:
        stop(state, node)
        if node.namespace:
            namespaces.delete_node(node.namespace, state.bridge, node.ip)


def stop(state: ClusterState, node: NodeState) -> None:
    """Kill all processes of `node` and remove its files."""
    processes.wait_gone(state, node)
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
