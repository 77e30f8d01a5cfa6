"""The device that a worker computes on: of a GPU slot Ray shows each worker its own alone (`on_ray.nodes`)."""

from __future__ import annotations

import os

from shoal_core.errors import UserError

__all__ = ["VISIBLE", "take_device"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that Ray sets: numbers of the GPUs that a process may see."""


def take_device(kind: str) -> None:
    """Have the calling thread compute on this worker's device of a kind (`Workload.runs_on`).

    Raises:
        UserError: it sees no GPU, or more than its own.
    """
    if kind != "cuda":
        return
    import torch

    seen = torch.cuda.device_count()
    if seen != 1:
        visible = f"{VISIBLE}={os.environ.get(VISIBLE, '')!r}, torch for CUDA {torch.version.cuda}"
        raise UserError(
            f"this worker sees {seen} GPUs, not one ({visible})",
            "use slot_resource=GPU on nodes whose driver and torch match, and leave that variable to Ray",
        )
    torch.cuda.set_device(0)
