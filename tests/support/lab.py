"""The lab with a workload that costs nothing: a quadratic on three cells."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from shoal import testing
from shoal.testing import Lab, Outcome, preload

__all__ = ["WORKLOAD", "Lab", "alone", "lab", "with_defaults"]

WORKLOAD = {"path": "shoal_workloads.synthetic:Synthetic", "seconds": 0.02, "global_batch": 12, "parameters": 1024}

preload("shoal_workloads.synthetic", "shoal_workloads.pretrain")


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Three cells, and of `WORKLOAD` what is not said otherwise, unless it is another."""
    workload = settings.get("workload", {})
    return {"cells": 3, **settings, "workload": workload if "path" in workload else WORKLOAD | workload}


def lab(folder: Path, nodes: dict[str, int], **settings: Any) -> AbstractContextManager[Lab]:
    return testing.lab(folder, nodes, **with_defaults(settings))


def alone(steps: int) -> Outcome:
    """`WORKLOAD` in this one process."""
    return testing.alone(WORKLOAD | {"seconds": 0.0}, steps)
