"""A trained checkpoint as the platform writes one, without the platform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal_core.ckpt import alone
from shoal_core.ckpt.folder import Folder
from shoal_workloads.config import PretrainConfig
from shoal_workloads.pretrain import Pretrain


def write_checkpoint(section: dict[str, Any], folder: Path, steps: int) -> Path:
    """Train `steps` steps of the `workload` section and save; returns the checkpoint's folder, inside `folder`."""
    workload = Pretrain(PretrainConfig.model_validate(section))
    workload.preflight(1)
    replica = workload.build(0)
    for step in range(steps):
        replica.accumulate([range(*workload.samples(step))])
        total = replica.sums()
        replica.commit(total, replica.stats(), replica.norm_sq(total))
    checkpoint = folder / f"step-{steps:08d}"
    samples, _ = workload.samples(steps)
    section = {"path": "shoal_workloads.pretrain:Pretrain", **section}
    about = {"steps": steps, "samples": samples, "workload": section}
    alone.write(Folder.at(checkpoint), replica.state_dict(), about)
    return checkpoint
