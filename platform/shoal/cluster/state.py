"""What is written down about a local cluster: `$XDG_STATE_HOME/shoal/clusters/<name>/cluster.json`.

Written before anything is started, so that whatever was half made can be found and taken down.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from shoal_core.errors import UserError
from shoal_core.files import replace_file

__all__ = [
    "HEAD",
    "STEADY",
    "ClusterState",
    "NodeState",
    "clusters_dir",
    "known_clusters",
    "load",
    "locked",
    "redis_dir",
    "redis_password",
    "save",
    "state_dir",
    "token_file",
]

HEAD = "head"
STEADY = "steady"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")


@dataclass(frozen=True)
class NodeState:
    """One node of a local cluster. `namespace` is empty in process mode, where all nodes share 127.0.0.1. `gpus`: GPUs
    that Ray is to count there, whether they are or not."""

    name: str
    ip: str
    slots: int
    cpus: int
    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = ""
    gpus: int = 0

    @property
    def is_head(self) -> bool:
        return self.name == HEAD

    @property
    def is_steady(self) -> bool:
        """Whether it is the node that holds drivers and controllers, beside a head that may die."""
        return self.name == STEADY


@dataclass(frozen=True)
class ClusterState:
    """A local cluster. `id` marks its processes, `phase` is `starting` or `up`, `temp_dir` holds Ray's sessions (a
    short path, because Unix sockets live in it), `bridge` and `subnet` (`10.x.y`) are empty in process mode,
    `redis_port` is 0 when Ray's control store is in the head's memory."""

    name: str
    id: str
    mode: str
    phase: str
    gcs_port: int
    dashboard_port: int
    metrics_port: int
    object_store_mb: int
    temp_dir: str
    bridge: str = ""
    subnet: str = ""
    redis_port: int = 0
    nodes: tuple[NodeState, ...] = ()

    @property
    def head(self) -> NodeState:
        return self.node(HEAD)

    @property
    def gcs_address(self) -> str:
        """`ip:port` for `ray.init` and `ray start`."""
        return f"{self.head.ip}:{self.gcs_port}"

    @property
    def dashboard_url(self) -> str:
        """Where the dashboard and the job server listen."""
        return f"http://{self.head.ip}:{self.dashboard_port}"

    def node(self, name: str) -> NodeState:
        """The node of that name. Raises UserError: there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise UserError(f"cluster {self.name}: no node {name!r}", f"name one of: {names}")

    def with_node(self, node: NodeState) -> ClusterState:
        return replace(self, nodes=(*self.nodes, node))


def clusters_dir() -> Path:
    """The folder of all local clusters of this user."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "shoal" / "clusters"


def state_dir(name: str) -> Path:
    """The folder of cluster `name`, whether it exists or not. Raises UserError: not a name."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"cluster name {name!r} is not usable", "1 to 20 of a-z, 0-9 and '-', the first a letter or a digit"
        )
    return clusters_dir() / name


def token_file(name: str) -> Path:
    """The cluster's own authentication token, readable by its owner only."""
    return state_dir(name) / "token"


def redis_dir(name: str) -> Path:
    """Where the cluster's Redis keeps its settings, its password, its log and its data, if it has one."""
    return state_dir(name) / "redis"


def redis_password(name: str) -> str:
    """What the cluster's Redis asks for; made when it was first started."""
    return (redis_dir(name) / "password").read_text()


def known_clusters() -> list[str]:
    """Names of the clusters that left a state, up or half made."""
    found = clusters_dir()
    return sorted(p.name for p in found.iterdir() if (p / "cluster.json").exists()) if found.is_dir() else []


def save(state: ClusterState) -> None:
    """Write `cluster.json` whole or not at all."""
    target = state_dir(state.name) / "cluster.json"
    replace_file(target, json.dumps(asdict(state), indent=1) + "\n")


def load(name: str) -> ClusterState:
    """The state of cluster `name`. Raises UserError: there is none, or it cannot be read."""
    path = state_dir(name) / "cluster.json"
    try:
        raw = json.loads(path.read_text())
        return ClusterState(**{**raw, "nodes": tuple(NodeState(**node) for node in raw["nodes"])})
    except FileNotFoundError:
        others = ", ".join(known_clusters()) or "none"
        raise UserError(
            f"no local cluster named {name!r} (clusters here: {others})", f"shoal cluster up --name {name}"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error})", f"remove {path.parent} and start again") from error


@contextmanager
def locked(name: str, wait: bool = True) -> Iterator[None]:
    """Hold the cluster's state directory (which must exist) against other `shoal cluster` commands.

    Raises UserError: with `wait=False`, another command holds it.
    """
    handle = os.open(state_dir(name), os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(
                f"cluster {name}: another shoal command is starting or changing it", "wait for it to end"
            ) from None
        yield
    finally:
        os.close(handle)
