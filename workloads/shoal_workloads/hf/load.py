"""A folder in Hugging Face's format -> a checkpoint that a run starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from shoal_data.errors import InputError
from shoal_workloads.config import PretrainConfig
from shoal_workloads.hf.config import from_hf_config
from shoal_workloads.hf.weights import fill
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.start import write_start

__all__ = ["import_checkpoint", "read_config"]


def read_config(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`.

    Raises:
        InputError: no readable `config.json`, or another architecture.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error})", "name a folder with config.json and safetensors"
        ) from error
    try:
        return from_hf_config(found, str(path))
    except ValidationError as error:
        raise InputError(f"{path}: {error}", "give a checkpoint of the DeepSeek-V3 architecture") from error


def import_checkpoint(source: str | Path, workload: dict[str, Any], out: str | Path) -> dict[str, Any]:
    """Write the weights in `source` as a checkpoint of 0 steps to the new folder `out`, whole or not at all.

    Args:
        workload: a job's `workload` section; its `model` is replaced by that of `source`, whose MTP modules, if it has
            none, are new ones.

    Raises:
        InputError: another architecture, a missing or extra tensor or one of another shape, or a bad section.
    """
    from safetensors import safe_open

    folder, target = Path(source), Path(out)
    if target.exists():
        raise InputError(f"{target}: exists", "name a new folder")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: holds no *.safetensors", "name a folder with config.json and safetensors")
    model = read_config(folder)
    has_mtp = model.mtp_depth > 0
    asked = workload.get("model", {}).get("mtp_depth")
    if asked is not None and not has_mtp:
        model = model.model_copy(update={"mtp_depth": asked})
    section = {**workload, "model": model.model_dump()}
    try:
        config = PretrainConfig.model_validate({k: v for k, v in section.items() if k != "path"})
    except ValidationError as error:
        raise InputError(f"workload: {error}", "mend the job's workload section") from error
    replica = Pretrain(config).build(seed=0)
    ours = {slot.name: slot.local for slot in replica.slots}
    ours |= {f"router_bias.{i}": moe.router.bias for i, moe in enumerate(replica.model.moe_layers())}
    opened = {path: safe_open(path, framework="pt") for path in files}
    where = {name: path for path, file in opened.items() for name in file.keys()}  # noqa: SIM118
    with torch.no_grad():
        fill(model, where, lambda name: opened[where[name]].get_tensor(name), mtp=has_mtp, where=str(folder), ours=ours)
    write_start(replica, section, target)
    return {"tensors": len(where), "parameters": sum(p.numel() for p in replica.model.parameters())}
