"""Checkpoints of 0 steps, that a run starts from: written from a replica, or from the checkpoint of another run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from pydantic import ValidationError

from shoal_data.errors import InputError
from shoal_workloads.checkpoint import Checkpoint, alone
from shoal_workloads.config import PretrainConfig
from shoal_workloads.evaluate import fill_model
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.recipe.extension import STEPS, Phase, extended
from shoal_workloads.replica import PretrainReplica

__all__ = ["extend_checkpoint", "write_start"]


def write_start(replica: PretrainReplica, section: dict[str, Any], target: Path) -> None:
    """Write `replica`, whose parameters and biases were set, to the new folder `target`, whole or not at all. section:
    the `workload` section it belongs to."""
    replica.loaded(0)
    replica.restart_averages()
    half = target.with_name(f".{target.name}.partial")
    shutil.rmtree(half, ignore_errors=True)
    with alone():
        dcp.save(replica.state_dict(), checkpoint_id=half, no_dist=True)
    entries = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in sorted(half.iterdir())
    }
    marker = {"steps": 0, "workers": 1, "workload": section, "files": entries}
    (half / "COMMITTED.json").write_text(json.dumps(marker, indent=1))
    os.replace(half, target)


def extend_checkpoint(source: str | Path, phase: Phase, workload: dict[str, Any], out: str | Path) -> dict[str, Any]:
    """Write the parameters and router biases of a run's checkpoint to the new folder `out`, as the start of the next
    phase of context extension; moments and averages start anew.

    Args:
        workload: a job's `workload` section; its `model`, `batch`, `schedule` and `data.seq_len` are the phase's.

    Returns:
        `steps` the phase takes, and the `workload` section of its job.

    Raises:
        InputError: no whole checkpoint, `out` exists, or a bad section.
    """
    target = Path(out)
    if target.exists():
        raise InputError(f"{target}: exists", "name a new folder")
    checkpoint = Checkpoint(source)
    found = extended(checkpoint.config, phase)
    phases = {name: found[name] for name in ("model", "batch", "schedule")}
    data = {**workload.get("data", {}), "seq_len": found["data"]["seq_len"]}
    section = {"path": "shoal_workloads.pretrain:Pretrain", **workload, **phases, "data": data}
    try:
        config = PretrainConfig.model_validate({key: value for key, value in section.items() if key != "path"})
    except ValidationError as error:
        raise InputError(f"workload: {error}", "mend the job's workload section") from error
    replica = Pretrain(config).build(seed=0)
    with torch.no_grad():
        fill_model(checkpoint, replica.model, replica.slots)
    write_start(replica, section, target)
    return {"steps": STEPS, "workload": section}
