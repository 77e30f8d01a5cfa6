"""Which device a worker computes on, and what is refused before it is placed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from shoal.config import Job
from shoal.on_ray.slots import Slot
from shoal.preflight import preflight
from shoal.record.sentences import gpu_words
from shoal.worker.device import CudaStopwatch, Stopwatch, figures, stopwatch, take_device
from shoal_core.devices import bf16_peak
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


@pytest.mark.parametrize(
    ("resource", "asked"),
    [
        ("GPU", {"num_cpus": 0, "num_gpus": 1}),
        ("CPU", {"num_cpus": 1}),
        ("slot", {"num_cpus": 0, "resources": {"slot": 1}}),
    ],
)
def test_ray_is_asked_for_a_gpu_as_it_wants_to_be(resource: str, asked: dict[str, Any]) -> None:
    assert Slot(resource).options() == asked


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


# ---- what a step came to


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 9999", None),
        ("", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name_or_not_at_all(name: str, peak: float | None) -> None:
    assert bf16_peak(name) == peak


def test_a_step_on_gpus_is_a_share_of_their_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[int] = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: reset.append(1))
    found = figures("cuda", tokens=8000.0, flops=989.4e12, seconds=2.0, workers=4)
    assert found == {"tokens_per_second_per_gpu": 1000.0, "peak_memory_bytes": 3.0 * 2**30, "mfu": 0.125}
    assert gpu_words(found) == ["1,000 tokens/s/GPU", "MFU 12.5%", "peak 3.0 GiB"]
    assert reset == [1]
    assert "mfu" not in figures("cuda", 8000.0, None, 2.0, 4)  # a workload that does not say
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "unheard of")
    assert "mfu" not in figures("cuda", 8000.0, 1e12, 2.0, 4)


def test_on_a_cpu_nothing_is_made_up() -> None:
    assert figures("cpu", 8000.0, 1e12, 2.0, 4) == {}
    assert gpu_words({"loss": 1.0}) == []


class Event:
    """A CUDA event on a device that takes a second between any two."""

    recorded: ClassVar[list[Event]] = []

    def record(self) -> None:
        self.recorded.append(self)

    def synchronize(self) -> None:
        assert self in self.recorded

    def elapsed_time(self, last: Event) -> float:
        return 1e3 * (self.recorded.index(last) - self.recorded.index(self))


def test_work_is_timed_where_it_is_done() -> None:
    watch = CudaStopwatch(Event)
    watch.start()
    watch.stop()
    assert watch.seconds() == 1.0
    assert type(stopwatch("cpu")) is Stopwatch
