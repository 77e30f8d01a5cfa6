"""How far the estimate is from steps that were measured on a machine of our own: `recorded.yaml`, as
`benchmarks/plan_time.py --record` writes it, with the calibration that was made just before."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.hardware import Hardware
from shoal_workloads.estimate.step import Cluster, Estimate, estimate

__all__ = ["Cells", "Recorded", "recorded"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Cells(_Entry):
    """`cells` of `workers`; `parallel`: of the job."""

    workers: int = Field(gt=0)
    cells: int = Field(gt=0)
    parallel: dict[str, Any]


class Recorded(_Entry):
    """`of`: when, and on what; `hardware`: what a calibration found then; `models`: workload sections but for
    `parallel`; `seconds`: of a step, by model and layout."""

    of: str
    hardware: Hardware
    models: dict[str, dict[str, Any]]
    layouts: dict[str, Cells]
    seconds: dict[str, dict[str, float]]

    def estimated(self, model: str, layout: str) -> Estimate:
        """One of these steps."""
        of = self.layouts[layout]
        config = PretrainConfig.model_validate(self.models[model] | {"parallel": of.parallel})
        return estimate(config, Cluster(1, of.workers * of.cells, "here", self.hardware), of.workers, of.cells)

    def compared(self) -> Iterator[tuple[str, str, float, float]]:
        """Model, layout, seconds as measured and as estimated."""
        for model, each in self.seconds.items():
            for layout, seconds in each.items():
                yield model, layout, seconds, self.estimated(model, layout).seconds


def recorded() -> Recorded:
    """What is shipped."""
    text = files(__package__).joinpath("recorded.yaml").read_text()
    return Recorded.model_validate(yaml.safe_load(text))
