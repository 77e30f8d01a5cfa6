"""How this machine's processes talk to a local cluster: the environment they need and where they must run."""

from __future__ import annotations

import os
import subprocess

from shoal.cluster import api
from shoal.cluster.launch import HEAD_MAY_DIE, LOOPBACK_ONLY, command_in, node_environment
from shoal.cluster.state import HEAD, load, token_file

__all__ = ["command", "environment", "execute"]


def environment(name: str) -> dict[str, str]:
    """What to add to a child's environment so that Ray's clients find cluster `name` and may talk to it.

    `RAY_ADDRESS` is for `ray.init()` (inside the cluster's network: see `command`), `RAY_API_SERVER_ADDRESS` for
    `ray job submit` and `JobSubmissionClient`, from anywhere on this machine. Holds the token's path, not the token.
    Set before Ray is imported: Ray reads it once. Raises UserError: no such cluster.
    """
    state = load(name)
    return {
        "RAY_ADDRESS": state.gcs_address,
        "RAY_API_SERVER_ADDRESS": state.dashboard_url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(name)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "SHOAL_CLUSTER": name,
        **(HEAD_MAY_DIE if state.redis_port else {}),
        **(LOOPBACK_ONLY if state.mode == "process" else {}),
        **api.no_proxy(state),
    }


def command(name: str, argv: list[str], node: str = HEAD) -> list[str]:
    """`argv` as it must be run on this machine so that it runs on `node`: a driver that calls `ray.init` has to, for
    the cluster's workers call it back on the node's address. Raises UserError: no such cluster or node."""
    return command_in(load(name).node(node), argv)


def execute(name: str, argv: list[str], node: str = HEAD, timeout_s: float | None = None) -> int:
    """Run `argv` on `node` with the node's environment and Ray's addresses, and return its exit status.

    It counts as a process of the node: it dies with it.
    Raises UserError: no such cluster or node. subprocess.TimeoutExpired: it ran for `timeout_s`, and was killed.
    """
    state = load(name)
    target = state.node(node)
    environ = {**os.environ, **node_environment(state, target), **environment(name)}
    return subprocess.run(command_in(target, argv), env=environ, check=False, timeout=timeout_s).returncode
