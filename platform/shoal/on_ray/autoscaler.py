"""What a run asks of the cluster's autoscaler: each piece of what it lacks is a placement group that waits for a node.

Ray has three ways to ask. `ray.autoscaler.sdk.request_resources` names a least size of the whole cluster: there is one
such request for all who use it, the last one counts, and it stays when who made it is gone. The coordinator of Ray
Train and Ray Data (`AutoscalingCoordinator`, a private actor) adds up the requests of several and forgets those that
are not repeated, but in the end says the same: a least size, in which slots that others hold, or that stand on nodes
which go or failed, count as there, so that a run would lack them for ever. A waiting placement group is demand beside
whatever is in use: the autoscaler (either version, and KubeRay's) starts a node for that very piece. It is public, adds
up over runs, shows in `ray status`, leaves those who use the other ways alone, and ends with the actor that made it,
not with its process: a controller that comes back finds it by its name, and of a run that is dead none is left.

A piece that a node came for holds its slots, and so is given back at once. Each is a placement group of its own: one of
several bundles would wait for all of its nodes, and go on asking for those that have come.
"""

from __future__ import annotations

import importlib
import json
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ray._private import ray_constants
from ray.experimental import internal_kv
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import get_placement_group

from shoal.decisions.asking import Standing
from shoal.on_ray.slots import Slot

__all__ = ["RayAutoscaler"]

messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")  # without type information
MOST = 256
"""Pieces that wait at once; more are asked for once these have come."""
ANSWER = 10
"""Seconds for the cluster to say what its autoscaler last told it."""
NODE_ID = "ray.io/node-id"
"""Ray's label of every node."""
UNTYPED = ("", "node_")
"""What the nodes of a cluster are called that was made by hand: the type of each is none, or its own."""


class RayAutoscaler:
    """A `shoal.control.asking.Autoscaler` of the connected cluster, for one run. `slot`: what a worker takes."""

    def __init__(self, run_id: str, slot: Slot) -> None:
        self._prefix, self._slot = f"{run_id}/asks/", slot

    def there(self) -> bool:
        """Whether the cluster has an autoscaler that could start nodes. (A cluster whose nodes have types, as KubeRay
        gives them, is taken to have one if any is running, though it might only report.)"""
        told = internal_kv._internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
        report = (json.loads(told).get("autoscaler_report") or {}) if told else {}
        types = {*(report.get("active_nodes") or {}), *(report.get("idle_nodes") or {})}
        if not report:
            client = internal_kv.internal_kv_get_gcs_client()
            said = messages.GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=ANSWER))
            if not said.autoscaling_state.autoscaler_state_version:
                return False
            types = {node.ray_node_type_name for node in said.cluster_resource_state.node_states}
        return any(kind and not kind.startswith(UNTYPED[1]) for kind in types)

    def standing(self) -> Standing:
        """What has become of what the run asked for."""
        waiting: list[int] = []
        came: list[tuple[str, int]] = []
        lost = 0
        for _, size, record in self._pieces():
            if record["state"] == "CREATED":
                came.append((str(record["bundles_to_node_id"][0]), size))
            elif record["state"] == "RESCHEDULING":
                lost += size
            else:
                waiting.append(size)
        return Standing(tuple(sorted(waiting, reverse=True)), tuple(came), lost)

    def ask(self, pieces: Sequence[int], avoid: Sequence[str] = ()) -> None:
        """Ask for these pieces, and for nothing else any more. A node in `avoid` is none that came."""
        missing = Counter(pieces[:MOST])
        for name, size, record in list(self._pieces()):
            if record["state"] in ("PENDING", "PREPARED") and missing[size]:
                missing[size] -= 1
            else:
                remove_placement_group(get_placement_group(name))
        labels = {**self._slot.labels, **({NODE_ID: f"!in({','.join(avoid)})"} if avoid else {})}
        for size in missing.elements():
            name = f"{self._prefix}{size}/{secrets.token_hex(6)}"
            placement_group([self._slot.of_many(size)], name=name, bundle_label_selector=[labels] if labels else None)

    def _pieces(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """(name, slots, what Ray knows of it) of each that was not given back."""
        for record in placement_group_table().values():
            name = str(record["name"])
            if name.startswith(self._prefix) and record["state"] != "REMOVED":
                yield name, int(name.removeprefix(self._prefix).partition("/")[0]), record
