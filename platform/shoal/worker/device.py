"""The device that a worker computes on: of a GPU slot Ray shows each worker its own alone (`on_ray.nodes`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from shoal_core.devices import bf16_peak
from shoal_core.errors import UserError

__all__ = ["VISIBLE", "Stopwatch", "figures", "stopwatch", "take_device"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that Ray sets: numbers of the GPUs that a process may see."""


def take_device(kind: str) -> None:
    """Have the calling thread compute on this worker's device of a kind (`Workload.runs_on`).

    Raises:
        UserError: it sees no GPU, or more than its own.
    """
    if kind != "cuda":
        return
    seen = torch.cuda.device_count()
    if seen != 1:
        visible = f"{VISIBLE}={os.environ.get(VISIBLE, '')!r}, torch for CUDA {torch.version.cuda}"
        raise UserError(
            f"this worker sees {seen} GPUs, not one ({visible})",
            "use slot_resource=GPU on nodes whose driver and torch match, and leave that variable to Ray",
        )
    torch.cuda.set_device(0)


class Stopwatch:
    """Seconds that work takes from `start` to `stop`, by the clock of the CPU that does it."""

    def __init__(self) -> None:
        self._began = self._ended = 0.0

    def start(self) -> None:
        self._began = time.monotonic()

    def stop(self) -> None:
        self._ended = time.monotonic()

    def seconds(self) -> float:
        """Of the last work. May wait for its end."""
        return self._ended - self._began


class CudaStopwatch(Stopwatch):
    """The same where a device works on after it was told what to do: by its own events, in the stream of the calling
    thread. `event`: makes one."""

    def __init__(self, event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True)) -> None:
        super().__init__()
        self._first, self._last = event(), event()

    def start(self) -> None:
        self._first.record()

    def stop(self) -> None:
        self._last.record()

    def seconds(self) -> float:
        self._last.synchronize()
        return float(self._first.elapsed_time(self._last)) / 1e3


def stopwatch(kind: str) -> Stopwatch:
    """For work on a device of a kind (`Workload.runs_on`)."""
    return CudaStopwatch() if kind == "cuda" else Stopwatch()


def figures(kind: str, tokens: float, flops: float | None, seconds: float, workers: int) -> dict[str, float]:
    """What a step of `tokens` and `flops` in `seconds` on `workers` devices came to, for the record: nothing on a CPU,
    whose peak nobody knows. The peak of memory is this worker's, since the last call.

    Returns `tokens_per_second_per_gpu`, `peak_memory_bytes`, and `mfu` (share of the BF16 peak) where both the FLOPs
    and the device's peak are known.
    """
    if kind != "cuda":
        return {}
    peak = bf16_peak(torch.cuda.get_device_name())
    found = {
        "tokens_per_second_per_gpu": tokens / seconds / workers,
        "peak_memory_bytes": float(torch.cuda.max_memory_allocated()),
    }
    torch.cuda.reset_peak_memory_stats()
    return found if flops is None or peak is None else found | {"mfu": flops / seconds / workers / peak}
