"""What a worker takes of a node, counted as Ray counts it; which nodes a selector picks, as Ray's scheduler does."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import ray
from ray._private.label_utils import validate_label_selector
from ray.autoscaler.v2.scheduler import SchedulingNode

from shoal.config import Job, parse
from shoal.on_ray import nodes
from shoal.on_ray.slots import Slot
from shoal_core.errors import UserError

messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")  # without type information
operators: Any = importlib.import_module("ray.core.generated.common_pb2").LabelSelectorOperator
IN, NOT_IN = operators.LABEL_OPERATOR_IN, operators.LABEL_OPERATOR_NOT_IN
SAID = {
    "a": (IN, ["a"]),
    "!a": (NOT_IN, ["a"]),
    "in(a)": (IN, ["a"]),
    "in(a, b)": (IN, ["a", "b"]),
    "!in(a,b)": (NOT_IN, ["a", "b"]),
    "inner": (IN, ["inner"]),
}
"""What a selector's value means to Ray."""


def of_ray(wanted: str, labels: dict[str, str]) -> bool:
    """Whether Ray's autoscaler puts a request with this selector on a node with these labels."""
    request = messages.ResourceRequest()
    constraint = request.label_selectors.add().label_constraints.add()
    constraint.label_key, constraint.operator = "zone", SAID[wanted][0]
    constraint.label_values.extend(SAID[wanted][1])
    node: Any = SchedulingNode.__new__(SchedulingNode)
    node.labels = labels
    return node._satisfies_label_constraints([request]) > 0


@pytest.mark.parametrize(("wanted", "zone"), list(itertools.product(SAID, ["a", "b", "c", "inner", None])))
def test_a_selector_picks_the_nodes_that_ray_picks(wanted: str, zone: str | None) -> None:
    labels = {"rack": "a"} | ({} if zone is None else {"zone": zone})
    assert validate_label_selector({"zone": wanted}) is None
    job = Job.model_validate({"steps": 1, "workload": {"path": "m:W"}, "slot_labels": {"zone": wanted}})
    assert Slot.of(job).on(labels) is of_ray(wanted, labels)


@pytest.mark.parametrize(
    ("slot", "offers", "count"),
    [
        (Slot("slot"), {"slot": 3.0}, 3),
        (Slot("slot"), {"CPU": 3.0}, 0),
        (Slot("GPU", {"CPU": 8, "memory": 16e9}), {"GPU": 8.0, "CPU": 60.0, "memory": 1e12}, 7),
        (Slot("GPU", {"CPU": 8, "memory": 16e9}), {"GPU": 8.0, "CPU": 64.0, "memory": 40e9}, 2),
        (Slot("CPU", {"CPU": 0.1}), {"CPU": 0.3}, 3),  # 0.3 / 0.1 is 2.9999999999999996
        (Slot("GPU", {"accelerator_type:H100": 0.001}), {"GPU": 8.0, "accelerator_type:H100": 1.0}, 8),
        (Slot("GPU", {"accelerator_type:H100": 0.001}), {"GPU": 8.0, "accelerator_type:A100": 1.0}, 0),
    ],
)
def test_a_node_has_as_many_slots_as_its_scarcest_resource_makes(
    slot: Slot, offers: dict[str, float], count: int
) -> None:
    assert slot.count(offers) == count


def test_what_a_worker_asks_ray_for() -> None:
    slot = Slot("slot", {"CPU": 2.0, "memory": 1e9, "disk": 0.5}, {"zone": "a"}, {"env_vars": {"A": "b"}})
    assert slot.options() == {
        "num_cpus": 2, "memory": 1_000_000_000, "resources": {"slot": 1, "disk": 0.5},
        "runtime_env": {"env_vars": {"A": "b"}},
    }  # fmt: skip
    assert slot.of_many(3) == {"slot": 3.0, "CPU": 6.0, "memory": 3e9, "disk": 1.5}
    assert slot.words() == " (of those with zone=a)"
    assert Slot("slot").words() == ""


def test_only_nodes_that_the_selector_picks_have_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the whole cluster, those that are free, and those within a run's reach."""
    offers = {"a": {"slot": 4.0, "CPU": 8.0}, "b": {"slot": 4.0, "CPU": 8.0}}
    records = [
        {
            "NodeID": name,
            "Alive": True,
            "Resources": own,
            "Labels": {"zone": name},
            "NodeManagerAddress": f"node-{name}",
        }
        for name, own in offers.items()
    ]
    monkeypatch.setattr(ray, "nodes", lambda: records)
    available = {"a": {"slot": 3.0, "CPU": 4.0}, "b": {"slot": 4.0, "CPU": 8.0}}
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: available)
    monkeypatch.setattr(nodes, "draining_nodes", dict)
    slot = Slot("slot", {"CPU": 2.0}, {"zone": "a"})
    assert {node.name: node.slots for node in nodes.living(slot)} == {"node-a": 4, "node-b": 0}
    assert {node.name: node.slots for node in nodes.view(slot)} == {"node-a": 2}
    reach = nodes.within_reach(slot, {"node-a": 1})
    assert {node.name: node.slots for node in reach} == {"node-a": 3, "node-b": 0}


@pytest.mark.parametrize(
    "settings",
    [
        {"slot_needs": {"GPU": 2}},
        {"slot_needs": {"object_store_memory": 1}},
        {"slot_needs": {"CPU": 0}},
        {"slot_labels": {"zone": "in()"}},
        {"slot_labels": {"zone": "!!a"}},
        {"worker_runtime_env": {"working_dir": "/here"}},
        {"log": "loud"},
    ],
)
def test_what_no_worker_can_be_given_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"slot_needs|slot_labels|worker_runtime_env|log"):
        parse(Job, {"steps": 1, "workload": {"path": "m:W"}, **settings}, source="job")
