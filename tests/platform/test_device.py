"""Which device a worker computes on, and what is refused before it is placed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.config import Job
from shoal.on_ray.nodes import of_one_slot
from shoal.preflight import preflight
from shoal.worker.device import take_device
from shoal_core.errors import UserError
from shoal_workloads.synthetic import Synthetic


class OnGpu(Synthetic):
    """Says that it computes on a GPU."""

    @property
    def runs_on(self) -> str:
        return "cuda"


def job(folder: Path, **settings: Any) -> Job:
    workload = {"path": f"{__name__}:OnGpu", "seconds": 0.0, "global_batch": 4, "parameters": 8}
    return Job.model_validate(
        {"steps": 1, "storage": folder, "workload": workload, "mlflow": {"enabled": False}, **settings}
    )


@pytest.mark.parametrize(("resource", "asked"), [("GPU", {"num_gpus": 1}), ("slot", {"resources": {"slot": 1}})])
def test_ray_is_asked_for_a_gpu_as_it_wants_to_be(resource: str, asked: dict[str, Any]) -> None:
    assert of_one_slot(resource) == asked


def test_a_workload_on_gpus_is_refused_on_slots_that_bring_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes 'slot' Ray gives none") as refused:
        preflight(job(tmp_path), resume=False)
    assert "slot_resource=GPU" in refused.value.remedy
    assert preflight(job(tmp_path, slot_resource="GPU"), resume=False).job.slot_resource == "GPU"


@pytest.mark.parametrize("seen", [0, 2])
def test_a_worker_that_does_not_see_one_gpu_cannot_start(monkeypatch: pytest.MonkeyPatch, seen: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(UserError, match=f"sees {seen} GPUs, not one"):
        take_device("cuda")


def test_a_worker_takes_its_only_gpu_and_on_a_cpu_none(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    take_device("cpu")
    assert taken == []
    take_device("cuda")
    assert taken == [0]
