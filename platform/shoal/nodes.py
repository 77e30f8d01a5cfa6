"""What the platform reads off Ray about nodes; the one place that knows Ray's node records."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoal.cluster.launch import DRIVER_RESOURCE
from shoal.plan import Node

__all__ = ["NODE_LABEL", "free_slots", "living", "near_node", "on_node", "quiet_node"]

NODE_LABEL = "shoal.io/node"
"""Label that names a node for people; without it the node's address serves."""


def living(slot_resource: str) -> list[Node]:
    """The living nodes, by name, with all their slots (taken or not)."""
    found = []
    for record in ray.nodes():
        if record["Alive"]:
            name = record.get("Labels", {}).get(NODE_LABEL) or record["NodeManagerAddress"]
            slots = int(record["Resources"].get(slot_resource, 0))
            found.append(Node(name, record["NodeID"], slots))
    return sorted(found, key=lambda node: node.name)


def free_slots(slot_resource: str) -> dict[str, int]:
    """Slots of each living node that no other run holds."""
    available: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()  # no public call says it
    return {
        node.name: int(available.get(node.ray_id, {}).get(slot_resource, 0))
        for node in living(slot_resource)
        if node.slots
    }


def on_node(node: Node) -> Any:
    """Schedule on this very node, or not at all."""
    return NodeAffinitySchedulingStrategy(node.ray_id, soft=False)


def near_node(ray_id: str) -> Any:
    """Schedule on this node while it is there, else anywhere."""
    return NodeAffinitySchedulingStrategy(ray_id, soft=True)


def quiet_node(slot_resource: str, own: str) -> str:
    """Where a controller sits (a Ray node id): a node for drivers, which outlives the head, if there is one; else one
    without slots (the head), since training nodes are those that are taken away; else the driver's `own`."""

    def rank(record: dict[str, Any]) -> tuple[bool, bool, bool]:
        offers = record["Resources"]
        return DRIVER_RESOURCE not in offers, offers.get(slot_resource, 0) > 0, record["NodeID"] != own

    return str(min((record for record in ray.nodes() if record["Alive"]), key=rank)["NodeID"])
