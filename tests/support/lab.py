"""The lab with a workload that costs nothing: a quadratic on three cells."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from shoal import testing
from shoal.testing import Lab, Outcome, preload

__all__ = ["WORKLOAD", "Lab", "alone", "hurry", "lab", "with_defaults"]

WORKLOAD = {"path": "shoal_workloads.synthetic:Synthetic", "seconds": 0.02, "global_batch": 12, "parameters": 1024}

preload("shoal_workloads.synthetic", "shoal_workloads.pretrain")
preload("torch._dynamo", "torch.distributed.tensor")  # which a model's first step and a state's first look import


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Three cells, and of `WORKLOAD` what is not said otherwise, unless it is another."""
    workload = settings.get("workload", {})
    return {"cells": 3, **settings, "workload": workload if "path" in workload else WORKLOAD | workload}


def lab(folder: Path, nodes: dict[str, int], **settings: Any) -> AbstractContextManager[Lab]:
    """Its steps take their time until `hurry` is called, if no other workload is told."""
    all_of_them = with_defaults(settings)
    if all_of_them["workload"]["path"] == WORKLOAD["path"]:
        all_of_them["workload"] |= {"hurry": str(folder / "hurry")}
    return testing.lab(folder, nodes, **all_of_them)


def hurry(one: Lab, recoveries: int = 0) -> None:
    """What a test waits for has happened once so many recoveries are on record: the rest of the run takes no time."""
    one.until(lambda: len(one.events("recovery")) >= recoveries)
    Path(one.job["workload"]["hurry"]).touch()


def alone(steps: int) -> Outcome:
    """`WORKLOAD` in this one process."""
    return testing.alone(WORKLOAD | {"seconds": 0.0}, steps)
