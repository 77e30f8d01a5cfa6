"""What a run asks of Ray's autoscaler, as placement groups; and the shapes of Ray's that this counts on."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace
from typing import Any

import pytest
from ray.util import placement_group

from shoal.decisions.asking import Standing
from shoal.on_ray import autoscaler
from shoal.on_ray.autoscaler import RayAutoscaler, messages
from shoal.on_ray.slots import Slot


class FakeRay:
    """Placement groups by name: slots, state, node and selector of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: dict[str, dict[str, Any]] = {}
        monkeypatch.setattr(autoscaler, "placement_group", self.make)
        monkeypatch.setattr(autoscaler, "placement_group_table", lambda: dict(self.groups))
        monkeypatch.setattr(autoscaler, "get_placement_group", lambda name: name)
        monkeypatch.setattr(autoscaler, "remove_placement_group", self.remove)

    def make(self, bundles: list[dict[str, float]], *, name: str, bundle_label_selector: Any) -> None:
        self.groups[name] = {"name": name, "state": "PENDING", "bundles_to_node_id": {0: ""}, "bundles": bundles}
        self.groups[name]["selector"] = bundle_label_selector

    def remove(self, name: str) -> None:
        self.groups[name]["state"] = "REMOVED"

    def waiting(self) -> list[str]:
        return [name for name, group in self.groups.items() if group["state"] != "REMOVED"]


def test_pieces_are_groups_of_their_own_and_stand_until_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(monkeypatch)
    one, other = RayAutoscaler("a", Slot("GPU")), RayAutoscaler("b", Slot("slot", {"CPU": 2}, {"zone": "a"}))
    other.ask((1,))
    one.ask((4, 4, 1), avoid=("bad", "worse"))
    assert one.standing() == Standing((4, 4, 1))
    first, *_ = [name for name in ray.waiting() if name.startswith("a/asks/4")]
    assert ray.groups[first]["bundles"] == [{"GPU": 4.0}]
    assert ray.groups[first]["selector"] == [{"ray.io/node-id": "!in(bad,worse)"}]
    before = set(ray.waiting())
    one.ask((4, 1))
    assert set(ray.waiting()) < before, "what stood already was not asked for anew"
    assert one.standing().open == (4, 1)
    one.ask(())
    assert one.standing() == Standing()
    assert other.standing() == Standing((1,))
    assert ray.groups[ray.waiting()[0]]["selector"] == [{"zone": "a"}]
    assert ray.groups[ray.waiting()[0]]["bundles"] == [{"slot": 1.0, "CPU": 2}]


def test_a_piece_that_a_node_came_for_is_given_back_and_one_whose_node_died_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = FakeRay(monkeypatch)
    one = RayAutoscaler("a", Slot("slot"))
    one.ask((1, 1, 1))
    came, lost, _ = ray.waiting()
    ray.groups[came] |= {"state": "CREATED", "bundles_to_node_id": {0: "n1"}}
    ray.groups[lost]["state"] = "RESCHEDULING"
    assert one.standing() == Standing((1,), (("n1", 1),), 1)
    one.ask((1,))
    assert one.standing() == Standing((1,))
    assert ray.groups[came]["state"] == ray.groups[lost]["state"] == "REMOVED"


def reply(version: int, *types: str) -> bytes:
    found = messages.GetClusterStatusReply()
    found.autoscaling_state.autoscaler_state_version = version
    for kind in types:
        found.cluster_resource_state.node_states.add().ray_node_type_name = kind
    return bytes(found.SerializeToString())


@pytest.mark.parametrize(
    ("told", "said", "there"),
    [
        (None, reply(0), False),
        (None, reply(3, "", "node_12ab"), False),
        (None, reply(3, "", "spot"), True),
        ({"active_nodes": {"node_12ab": 1}}, b"", False),
        ({"active_nodes": {"ray.head.default": 1}}, b"", True),
        ({"active_nodes": {}, "idle_nodes": {"spot": 1}}, b"", True),
    ],
)
def test_an_autoscaler_is_known_by_the_types_of_its_nodes(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any] | None, said: bytes, there: bool
) -> None:
    """Told by the first version in the cluster's store, by the second to whoever asks."""
    stored = None if told is None else json.dumps({"autoscaler_report": told}).encode()
    client = SimpleNamespace(get_cluster_status=lambda timeout_s: said)
    store = SimpleNamespace(_internal_kv_get=lambda key: stored, internal_kv_get_gcs_client=lambda: client)
    monkeypatch.setattr(autoscaler, "internal_kv", store)
    assert RayAutoscaler("a", Slot("slot")).there() is there


def test_ray_still_has_what_this_counts_on() -> None:
    assert {"bundles", "name", "bundle_label_selector"} <= set(inspect.signature(placement_group).parameters)
    assert autoscaler.ray_constants.DEBUG_AUTOSCALING_STATUS
    assert callable(autoscaler.internal_kv._internal_kv_get)
    assert callable(autoscaler.internal_kv.internal_kv_get_gcs_client)
