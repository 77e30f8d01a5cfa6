"""How one node of a local cluster is started: its environment, its Ray settings, its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from shoal.cluster import api, namespaces, processes
from shoal.cluster.state import ClusterState, NodeState, redis_password, state_dir, token_file
from shoal_core.passing import TEMP_DIR

__all__ = [
    "DRIVER_RESOURCE",
    "HEAD_MAY_DIE",
    "HEALTH_CHECKS",
    "LOOPBACK_ONLY",
    "NODE_LABEL",
    "command_in",
    "go",
    "launch",
    "log_file",
    "node_environment",
    "ray_params",
]

NODE_LABEL = "shoal.io/node"
"""The Ray node label that holds the node's name (`ray.nodes()[i]["Labels"]`)."""

# Shoal itself learns of a death from its lifelines; Ray may take some seconds, and a stalled machine keeps its nodes.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
}

HEAD_MAY_DIE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
"""Where the control store is on Redis: how long nodes, workers and drivers wait for a head that died (by default 60 s,
then they end themselves)."""

DRIVER_RESOURCE = "driver"
"""What the steady node offers: `ray job submit --entrypoint-resources '{"driver": 1}'` puts a job's driver there."""
DRIVERS = 16

LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Process mode: Ray takes 127.0.0.1 for this machine's address instead of replacing it by one of the network, where
the cluster, which listens on loopback alone, would never be found (Ray's default off Linux)."""


def log_file(name: str, node: str) -> Path:
    """What the start of a node printed; the logs of its Ray processes are in Ray's session directory."""
    return state_dir(name) / "logs" / f"{node}.log"


def node_environment(state: ClusterState, node: NodeState) -> dict[str, str]:
    """The environment of every process of `node`: this process's own, without what belongs to another Ray cluster."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {
        **inherited,
        **HEALTH_CHECKS,
        **(HEAD_MAY_DIE | {"RAY_external_storage_namespace": state.id} if state.redis_port else {}),
        **({"RAY_REDIS_PASSWORD": redis_password(state.name)} if state.redis_port and node.is_head else {}),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "150",  # its 60 s are not enough on a machine under load
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(state.name)),
        "DASHBOARD_METRIC_PORT": str(state.metrics_port),
        # job entrypoints find `shoal` and this Python
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # gloo would look the host name up, and find an address that is not the node's
        "GLOO_SOCKET_IFNAME": namespaces.INTERFACE if node.namespace else "lo",
        **({} if node.namespace else LOOPBACK_ONLY),
        **api.no_proxy(state),
        "SHOAL_CLUSTER": state.name,
        TEMP_DIR: temp_dir(state, node),
        processes.MARK: processes.mark(state, node),
    }


def temp_dir(state: ClusterState, node: NodeState) -> str:
    """Where the node's Ray processes keep their sockets and logs."""
    return str(Path(state.temp_dir) / node.name)


def command_in(node: NodeState, command: list[str]) -> list[str]:
    """`command` as it must be run on this machine to run inside `node`."""
    return ["nsenter", f"--net=/run/netns/{node.namespace}", "--", *command] if node.namespace else command


def ray_params(state: ClusterState, node: NodeState) -> dict[str, Any]:
    """Keyword arguments of `RayParams` for `node`."""
    common: dict[str, Any] = {
        "node_ip_address": node.ip,
        "node_name": node.name,
        "num_cpus": node.cpus,
        "num_gpus": node.gpus,
        "object_store_memory": state.object_store_mb * 1_000_000,
        "temp_dir": temp_dir(state, node),
        "labels": {**node.labels, NODE_LABEL: node.name},
        # all nodes share this machine: workers take any free port
        "min_worker_port": 0,
        "max_worker_port": 0,
        "dashboard_agent_listen_port": None,
    }
    if node.is_head:
        return {
            **common,
            "gcs_server_port": state.gcs_port,
            "include_dashboard": True,
            "dashboard_host": node.ip,
            "dashboard_port": state.dashboard_port,
            "no_monitor": True,  # the autoscaler's process: nothing to scale here
            # the main Redis and its one shard, which Ray wants told apart; the password is in the environment
            **({"external_addresses": [f"127.0.0.1:{state.redis_port}"] * 2} if state.redis_port else {}),
        }
    # Nodes run no log monitor (1 s of CPU and 80 MB each): what workers print stays in the node's logs, which the
    # dashboard shows.
    return {
        **common,
        "gcs_address": state.gcs_address,
        "resources": {DRIVER_RESOURCE: DRIVERS} if node.is_steady else {"slot": node.slots},
        "include_log_monitor": False,
    }


def launch(state: ClusterState, node: NodeState) -> subprocess.Popen[bytes]:
    """Prepare `node`: a process that imports Ray, waits for `go`, then ends, with 0 when the node has joined."""
    folder = Path(temp_dir(state, node))
    folder.mkdir(mode=0o700, exist_ok=True)
    # As `ray start` does: a job's driver is given the address in this file. Without it, it is given any cluster's that
    # runs on this machine.
    (folder / "ray_current_cluster").write_text(state.gcs_address)
    spec = json.dumps({"head": node.is_head, "params": ray_params(state, node)})
    log = log_file(state.name, node.name)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command_in(node, [sys.executable, "-m", "shoal.cluster.start_node", spec]),
            env=node_environment(state, node),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=state.temp_dir,
            start_new_session=True,  # Ctrl-C in the terminal is not the node's
        )


def go(launched: subprocess.Popen[bytes]) -> None:
    """Let a launched node start: a node gives up when the head it wants to join is not up."""
    assert launched.stdin is not None
    launched.stdin.close()
