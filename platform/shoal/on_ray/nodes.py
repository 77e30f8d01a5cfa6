"""What Ray says of nodes: which live, with how many slots, where they stand, and which are leaving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoal.cluster.launch import DRIVER_RESOURCE, NODE_LABEL
from shoal.on_ray.drain import draining_nodes
from shoal.on_ray.slots import Slot
from shoal.plan import Node, Site

__all__ = [
    "RACK_LABEL",
    "ZONE_LABELS",
    "living",
    "near_node",
    "on_node",
    "quiet_node",
    "site",
    "view",
    "within_reach",
]

RACK_LABEL = "rack"
ZONE_LABELS = ("ray.io/availability-zone", "zone")
"""Labels that name a node's rack and zone; of those for the zone the first that is there (Ray's cluster launchers and
KubeRay may set its own)."""


def site(labels: Mapping[str, str]) -> Site:
    """Where a node with these labels stands; empty names for what they do not say."""
    zone = next((labels[key] for key in ZONE_LABELS if labels.get(key)), "")
    return Site(labels.get(RACK_LABEL, ""), zone)


def living(slot: Slot) -> list[Node]:
    """The living nodes, by name, with all their slots (taken or not). One that the slot's labels do not pick has
    none."""
    found = []
    for record in ray.nodes():
        if record["Alive"]:
            labels = record.get("Labels", {})
            name = labels.get(NODE_LABEL) or record["NodeManagerAddress"]
            offers = record["Resources"]
            slots, memory = slot.count(offers) if slot.on(labels) else 0, float(offers.get("memory", 0.0))
            found.append(Node(name, record["NodeID"], slots, site=site(labels), memory=memory))
    return sorted(found, key=lambda node: node.name)


def free(slot: Slot) -> dict[str, int]:
    """Slots that nobody holds, by Ray's id of the node."""
    available: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()  # no public call says it
    return {ray_id: slot.count(resources) for ray_id, resources in available.items()}


def view(slot: Slot) -> list[Node]:
    """The cluster as a new run finds it: living nodes with the slots that no other run holds."""
    slots, leaving = free(slot), draining_nodes()
    return [
        replace(node, slots=min(node.slots, slots.get(node.ray_id, 0)), draining=node.ray_id in leaving)
        for node in living(slot)
        if node.slots
    ]


def within_reach(slot: Slot, mine: Mapping[str, int]) -> list[Node]:
    """The living nodes with the slots that no other run holds. `mine`: those this run holds, by the node's name."""
    slots = free(slot)
    return [
        replace(node, slots=min(node.slots, slots.get(node.ray_id, 0) + mine.get(node.name, 0)))
        for node in living(slot)
    ]


def on_node(node: Node) -> Any:
    """Schedule on this very node, or not at all."""
    return NodeAffinitySchedulingStrategy(node.ray_id, soft=False)


def near_node(ray_id: str) -> Any:
    """Schedule on this node while it is there, else anywhere."""
    return NodeAffinitySchedulingStrategy(ray_id, soft=True)


def quiet_node(slot: Slot, own: str) -> str:
    """Where a controller sits (a Ray node id): a node for drivers, which outlives the head, if there is one; else one
    without slots (the head), since training nodes are those that are taken away; else the driver's `own`."""

    def rank(record: dict[str, Any]) -> tuple[bool, bool, bool]:
        offers = record["Resources"]
        return DRIVER_RESOURCE not in offers, offers.get(slot.resource, 0) > 0, record["NodeID"] != own

    return str(min((record for record in ray.nodes() if record["Alive"]), key=rank)["NodeID"])
