"""Shoal in Ray Train's words (docs/ray-train.md).

>>> import ray.train
>>> from shoal.train import ShoalTrainer
>>> result = ShoalTrainer(
...     workload="my_package.mine:Workload",
...     shoal_config={"steps": 1000},
...     scaling_config=ray.train.ScalingConfig(num_workers=4, use_gpu=True),
...     run_config=ray.train.RunConfig(name="first", storage_path="s3://bucket/runs"),
... ).fit()

`workload` may be a class as well: a subclass of `TorchWorkload` is any PyTorch model (docs/your-model.md).

To import this package costs nothing: Ray or torch comes with what is first used of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.train.outcome import RunStopped, read_result
    from shoal.train.trainer import ShoalTrainer
    from shoal_workloads.torchmodel.corpus import CorpusTokens
    from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["CorpusTokens", "RunStopped", "ShoalTrainer", "TorchWorkload", "read_result"]

_WHERE = {
    "CorpusTokens": "shoal_workloads.torchmodel.corpus",
    "RunStopped": "shoal.train.outcome",
    "ShoalTrainer": "shoal.train.trainer",
    "TorchWorkload": "shoal_workloads.torchmodel.workload",
    "read_result": "shoal.train.outcome",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
