"""The HTTP interface of the cluster's dashboard, asked with the cluster's token. Imports no Ray: 50 ms, not 1 s."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

from shoal.cluster.state import ClusterState, token_file

__all__ = ["get", "no_proxy", "ray_nodes"]

ANSWER = 5.0
"""Seconds that an answer may take, as a rule."""


def get(state: ClusterState, path: str, timeout_s: float = ANSWER) -> Any:
    """The JSON at `path` of the dashboard.

    Raises OSError: no answer, or one that is not 200.
    """
    request = urllib.request.Request(
        state.dashboard_url + path, headers={"Authorization": f"Bearer {token_file(state.name).read_text()}"}
    )
    # never through a proxy of the environment: the token is for this cluster alone
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_s) as answer:
        return json.loads(answer.read())


def ray_nodes(state: ClusterState) -> list[dict[str, Any]]:
    """Every node Ray knows of, dead ones too: `node_id, node_ip, state (ALIVE|DEAD), resources_total, labels, ...`.

    Raises OSError: the dashboard does not answer.
    """
    answer = get(state, "/api/v0/nodes?limit=1000")
    if not answer["result"]:
        raise OSError(answer["msg"])
    found: list[dict[str, Any]] = answer["data"]["result"]["result"]
    return found


def no_proxy(state: ClusterState) -> dict[str, str]:
    """Environment that keeps HTTP clients from asking a proxy for the cluster's addresses."""
    hosts = [host for host in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",") if host]
    hosts += ["127.0.0.1", "localhost", *([f"{state.subnet}.0/24", state.head.ip] if state.subnet else [])]
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(dict.fromkeys(hosts)))
