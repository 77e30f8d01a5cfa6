"""The controller's actor without Ray: what cannot live ends the run with its reason, and is not started again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from shoal.on_ray import controller_actor as actor
from shoal.on_ray.controller_actor import ControllerActor
from shoal.on_ray.parts import PART, parted, whole
from shoal.on_ray.submit import submit
from shoal.record import read
from shoal.record.rundir import RunDir
from shoal_core.errors import UserError
from tests.support.fleet import FakeFleet

KIND: Any = ControllerActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"steps": None}, "steps"),
        ({"workload": {"path": "nowhere:Workload"}}, "nowhere"),
        ({"workload": {"path": "shoal_workloads.synthetic:Synthetic", "lr": None}}, "lr"),
    ],
)
def test_a_job_that_no_controller_can_run_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], why: str
) -> None:
    fleets: list[FakeFleet] = []
    removed = threading.Event()

    def fleet(slot_resource: str) -> FakeFleet:
        fleets.append(FakeFleet())
        return fleets[-1]

    context = SimpleNamespace(was_current_actor_reconstructed=True, current_actor="me")
    monkeypatch.setattr(actor.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(actor.ray, "kill", lambda who: removed.set())
    monkeypatch.setattr(actor, "RayFleet", fleet)
    monkeypatch.setattr(actor, "GRACE", 0.0)
    RunDir.create(tmp_path, "a", {}, resume=False).close()
    job = {
        "run_id": "a",
        "storage": str(tmp_path),
        "steps": 5,
        "workload": {"path": "shoal_workloads.synthetic:Synthetic"},
        **changed,
    }
    one = KIND({}, "", b"", *parted({"job": job, "seats": [], "start": 0, "about": {}}))

    async def ask() -> tuple[tuple[str, str], int]:
        outcome = await one.wait()
        await one.stop("nobody waits for this for ever")
        return outcome, await one.give_up_spares(3, "b")

    (status, reason), given = asyncio.run(asyncio.wait_for(ask(), 600))
    assert status == "failed"
    assert why in reason
    assert given == 0
    assert fleets[0].runs_ended == ["a"]
    assert [event["kind"] for event in read.events(tmp_path / "a")] == ["error", "run_ended"]
    assert removed.wait(600)


def test_what_a_controller_knows_of_thousands_of_workers_travels_in_arguments_that_ray_keeps_with_it() -> None:
    """Each far below the 100 KiB from which on Ray would keep it in the memory of the driver's node."""
    nodes = [hashlib.sha256(str(number).encode()).hexdigest()[:56] for number in range(2000)]
    known = {"seats": [[place // 32, place % 32, nodes[place // 8]] for place in range(16_000)], "start": 3}
    assert len(json.dumps(known)) > 1_000_000
    parts = parted(known)
    assert len(parts) > 1
    assert {len(part) for part in parts[:-1]} == {PART}
    assert whole(parts) == known
    with pytest.raises(UserError, match="are kept with a run's controller"):
        parted({"job": os.urandom(1 << 20).hex() * 5})


def test_a_job_that_is_too_large_to_travel_leaves_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    job: Any = MagicMock(elastic=None, spares=0)
    job.model_dump.return_value = {"workload": {"words": os.urandom(1 << 20).hex() * 5}}
    stands = {name: MagicMock() for name in ("held", "Slot", "cell_mesh", "planned_in_time", "begun", "index")}
    stands["held"].return_value = False
    stands["planned_in_time"].return_value = SimpleNamespace(nodes=dict, notes=())
    for name, stand in stands.items():
        monkeypatch.setattr(f"shoal.on_ray.submit.{name}", stand)
    ready: Any = SimpleNamespace(job=job, workload=None, about={}, start=0, passed=())
    with pytest.raises(UserError, match="are kept with a run's controller"):
        submit(ready, resume=False)
    stands["begun"].assert_not_called()
