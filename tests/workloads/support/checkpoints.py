"""A trained checkpoint as the platform writes one, without the platform."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from shoal_workloads.config import PretrainConfig
from shoal_workloads.pretrain import Pretrain


def write_checkpoint(section: dict[str, Any], folder: Path, steps: int) -> Path:
    """Train `steps` steps of the `workload` section and save; returns the checkpoint's folder, inside `folder`."""
    workload = Pretrain(PretrainConfig.model_validate(section))
    workload.preflight(1)
    replica = workload.build(0)
    for step in range(steps):
        replica.accumulate(range(*workload.samples(step)))
        total = replica.sums()
        replica.commit(total, replica.stats(), replica.norm_sq(total))
    checkpoint = folder / f"step-{steps:08d}"
    dcp.save(replica.state_dict(), checkpoint_id=checkpoint, no_dist=True)
    marker = {"steps": steps, "workload": {"path": "shoal_workloads.pretrain:Pretrain", **section}}
    (checkpoint / "COMMITTED.json").write_text(json.dumps(marker))
    return checkpoint
