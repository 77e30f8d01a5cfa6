"""What else befalls nodes, apart from death (`local.kill_node`): to freeze, to be cut off, wholly or from a port."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

from shoal.cluster import namespaces, processes
from shoal.cluster.state import ClusterState, NodeState, load
from shoal_core.errors import UserError

__all__ = ["check_cables", "freeze_node", "heal_link", "partition", "port_cut", "thaw_node"]


def freeze_node(name: str, node: str) -> tuple[float, list[int]]:
    """SIGSTOP every process of a node: it keeps its connections and answers nothing. `(wall time, pids)`.

    Raises UserError: no such node, or it is dead.
    """
    return _send(name, node, signal.SIGSTOP)


def thaw_node(name: str, node: str) -> tuple[float, list[int]]:
    """SIGCONT every process of a node. One that Ray has declared dead meanwhile ends itself. `(wall time, pids)`.

    Raises UserError: no such node, or it is dead.
    """
    return _send(name, node, signal.SIGCONT)


def partition(name: str, node: str) -> float:
    """Cut a node off: its packets, and those to it, vanish; no connection is reset. The wall time of the cut.

    Raises UserError: no such node, the head, or not a cluster of namespaces.
    """
    state, target = _cable(name, node)
    at = time.time()
    namespaces.set_link(state.bridge, target.ip, up=False)
    return at


def heal_link(name: str, node: str) -> float:
    """Undo `partition`: the wall time. Raises UserError as it does."""
    state, target = _cable(name, node)
    namespaces.set_link(state.bridge, target.ip, up=True)
    return time.time()


def check_cables(name: str) -> ClusterState:
    """The cluster of that name. Raises UserError: it has no namespaces, and so no network that can be cut."""
    state = load(name)
    if state.mode != "netns":
        raise UserError(
            f"cluster {name} is made of plain processes, whose network cannot be cut", "shoal cluster up --mode netns"
        )
    return state


@contextlib.contextmanager
def port_cut(name: str, address: str, port: int) -> Iterator[None]:
    """Cut all nodes off from one port of one of them: packets vanish both ways, no connection is reset, and whatever
    else they speak goes on. Nodes that join meanwhile are not cut off.

    Raises UserError: not a cluster of namespaces.
    """
    state = check_cables(name)
    cut: list[str] = []
    try:
        for node in state.nodes:
            if namespaces.exists(node.namespace):
                cut.append(node.namespace)
                namespaces.cut_port(node.namespace, address, port)
        yield
    finally:
        for namespace in cut:
            if namespaces.exists(namespace):
                namespaces.heal_port(namespace, address, port)


def _send(name: str, node: str, signum: int) -> tuple[float, list[int]]:
    state = load(name)
    at, pids = processes.send(state, state.node(node), signum)
    if not pids:
        raise UserError(f"cluster {name}: {node} is dead", "shoal cluster status shows who lives")
    return at, pids


def _cable(name: str, node: str) -> tuple[ClusterState, NodeState]:
    state = check_cables(name)
    target = state.node(node)
    if target.is_head:
        raise UserError(f"cluster {name}: all traffic with the head would end", "name one of the nodes")
    return state, target
