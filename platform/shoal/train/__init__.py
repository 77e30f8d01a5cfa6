"""Shoal in Ray Train's words (docs/ray-train.md).

>>> import ray.train
>>> from shoal.train import ShoalTrainer
>>> result = ShoalTrainer(
...     workload="my_package.mine:Workload",
...     shoal_config={"steps": 1000},
...     scaling_config=ray.train.ScalingConfig(num_workers=4, use_gpu=True),
...     run_config=ray.train.RunConfig(name="first", storage_path="s3://bucket/runs"),
... ).fit()

To import this package costs nothing: Ray comes with what is first used of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.train.outcome import RunStopped, read_result
    from shoal.train.trainer import ShoalTrainer

__all__ = ["RunStopped", "ShoalTrainer", "read_result"]

_WHERE = {"RunStopped": "outcome", "ShoalTrainer": "trainer", "read_result": "outcome"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
