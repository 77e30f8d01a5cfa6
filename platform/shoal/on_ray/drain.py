"""Ray's node drain: say that a node is about to go, and learn which ones are.

All of Shoal's use of these private calls of Ray is here. Importing this module imports Ray: set the cluster's
environment first (`connect.environment`).
"""

from __future__ import annotations

import importlib
import time
from typing import Any

from ray._private.state import state

from shoal_core.errors import UserError

__all__ = ["drain_node", "draining_nodes"]

# compiled modules, without type information
raylet: Any = importlib.import_module("ray._raylet")
messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
PREEMPTION = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")


def draining_nodes() -> dict[str, float]:
    """Deadline (unix, s; 0 for none) by Ray node id (hex) of every node that was told to go and is still alive.

    Needs `ray.init`. A notice shows within 10 ms; `ray.nodes()` does not show it.
    """
    return {node_id: deadline_ms / 1000 for node_id, deadline_ms in state.get_draining_nodes().items()}


def drain_node(gcs_address: str, node_id: str, deadline_s: float, message: str) -> float:
    """Tell Ray that node `node_id` (hex) will be taken away in `deadline_s` seconds, as a cloud's preemption notice
    does: nothing new is placed there. Nothing is killed at the deadline. Returns the deadline (unix, s).

    Raises UserError: Ray refuses (a node that is dead, or unknown).
    """
    deadline = time.time() + deadline_s
    accepted, why = raylet.GcsClient(address=gcs_address).drain_node(node_id, PREEMPTION, message, int(deadline * 1000))
    if not accepted:
        raise UserError(f"node {node_id} is not drained: {why}", "shoal cluster status shows which nodes are alive")
    return deadline
