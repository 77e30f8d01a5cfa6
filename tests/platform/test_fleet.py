"""What a controller asks of Ray waits in order, and never holds the controller up; where the controller itself sits."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import ray

from shoal.on_ray import nodes
from shoal.on_ray.fleet import RayFleet, cause_of
from shoal.on_ray.slots import Slot


class Away(RayFleet):
    """A cluster whose head is away until `back` is set."""

    def __init__(self) -> None:
        super().__init__(Slot("slot"))
        self.back = threading.Event()
        self.done: list[str] = []

    def _spawn(self, setup: Any, node: Any, died: Any) -> None:
        assert self.back.wait(30.0)
        self.done.append(f"spawn {setup}")

    def _kill(self, name: str) -> None:
        self.done.append(f"kill {name}")
        if name == "unknown":
            raise ConnectionError("no such thing")


def test_orders_return_at_once_and_are_carried_out_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    fleet: Any = Away()
    fleet.spawn("a", None, print)
    for name in ("unknown", "a"):
        fleet.kill(name)
    assert fleet.done == []
    fleet.back.set()
    fleet.close()
    assert fleet.done == ["spawn a", "kill unknown", "kill a"]
    assert "ConnectionError: no such thing" in caplog.text


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ({"head": {}, "own": {"slot": 2}, "steady": {"driver": 16}}, "steady"),
        ({"own": {"slot": 2}, "head": {}}, "head"),
        ({"other": {"slot": 2}, "own": {"slot": 2}}, "own"),
        ({"head": {}, "steady": {"driver": 16, "dead": 1}}, "head"),
    ],
)
def test_the_controller_sits_where_nothing_is_taken_away(
    monkeypatch: pytest.MonkeyPatch, offers: dict[str, dict[str, int]], chosen: str
) -> None:
    records = [{"NodeID": name, "Alive": "dead" not in own, "Resources": own} for name, own in offers.items()]
    monkeypatch.setattr(ray, "nodes", lambda: records)
    assert nodes.quiet_node(Slot("slot"), "own") == chosen


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: WorkerActor\n\tpid: 7\n"
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR: killed.\n"
            "The actor never ran - it was cancelled before it started running.",
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR: killed.",
        ),
        (
            "The actor died because of an error raised in its creation task, ray::WorkerActor.__init__()\n"
            '  File "x.py", line 1\nImportError: no module\n',
            "ImportError: no module",
        ),
        ("", "nothing is known of it"),
    ],
)
def test_the_cause_of_an_actors_end_is_one_line(said: str, cause: str) -> None:
    assert cause_of(said) == cause
