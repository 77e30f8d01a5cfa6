"""Checkpoints of 0 steps, that a run starts from: written from a replica, or from the checkpoint of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from shoal_core.ckpt import alone
from shoal_core.ckpt.among import half_written, remove
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.together import Uncommitted
from shoal_core.errors import UserError
from shoal_core.loading import own_settings
from shoal_core.store import Store, local_folder, open_store
from shoal_workloads.checkpoint import Checkpoint
from shoal_workloads.config import PretrainConfig, wrong_fields
from shoal_workloads.evaluate import fill_model
from shoal_workloads.extension import STEPS, Phase, extended
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.replica import PretrainShard

__all__ = ["check_target", "drop_half_written", "extend_checkpoint", "new_place", "write_start"]


def new_place(address: str | Path) -> Path | Store:
    """Where nothing is yet: a folder of this machine, or a store.

    Raises:
        UserError: something is there.
    """
    folder = local_folder(address)
    place = open_store(address) if folder is None else folder
    taken = place.exists() if isinstance(place, Path) else any(True for _ in place.list())
    if taken:
        raise UserError(f"{address}: exists", "name a new folder")
    return place


def check_target(target: str | Path) -> None:
    """Whether a checkpoint of 0 steps may be written to this address.

    Raises:
        UserError: it exists, or has the name of another step's checkpoint.
    """
    new_place(target)
    if Folder.at(target).steps:
        raise UserError(f"{target}: is the name of a checkpoint after training", "call it step-00000000")


def drop_half_written(target: str | Path) -> None:
    """Remove from this address what was to become a checkpoint of 0 steps and did not, because who wrote it was killed;
    where anything else lies too, nothing is touched.

    Raises:
        StoreError: the store keeps it.
    """
    folder = Folder.at(target)
    if not folder.steps and half_written(folder):
        remove(folder, marker=False)


def write_start(replica: PretrainShard, section: dict[str, Any], target: str | Path) -> None:
    """Write `replica`, whose parameters and biases were set, to the new address `target`, whole or not at all. section:
    the `workload` section it belongs to.

    Raises:
        UserError: it cannot be written.
    """
    replica.loaded(0)
    replica.restart_averages()
    about = {"steps": 0, "samples": 0, "workers": 1, "workload": section}
    try:
        alone.write(Folder.at(target), replica.state_dict(), about)
    except Uncommitted as error:
        raise UserError(
            f"{target}: cannot be written ({error.problem})", error.remedy or "make room, or name another place"
        ) from error


def extend_checkpoint(source: str | Path, phase: Phase, workload: dict[str, Any], out: str | Path) -> dict[str, Any]:
    """Write the parameters and router biases of a run's checkpoint to the new address `out`, as the start of the next
    phase of context extension; moments and averages start anew.

    Args:
        workload: a job's `workload` section; its `model`, `batch`, `schedule` and `data.seq_len` are the phase's.

    Returns:
        `steps` the phase takes, and the `workload` section of its job.

    Raises:
        UserError: no whole checkpoint, `out` exists, or a bad section.
    """
    check_target(out)
    checkpoint = Checkpoint(source)
    found = extended(checkpoint.config, phase)
    phases = {name: found[name] for name in ("model", "batch", "schedule")}
    data = {**workload.get("data", {}), "seq_len": found["data"]["seq_len"]}
    path = workload.get("path", "shoal_workloads.pretrain:Pretrain")
    section = {"path": path, **own_settings(workload), **phases, "data": data}
    try:
        config = PretrainConfig.model_validate(own_settings(section))
    except ValidationError as error:
        raise UserError(f"workload: {wrong_fields(error)}", "mend the job's workload section") from error
    replica = Pretrain(config).build(seed=0)
    with torch.no_grad():
        fill_model(checkpoint, replica.model, replica.shards)
    write_start(replica, section, out)
    return {"steps": STEPS, "workload": section}
