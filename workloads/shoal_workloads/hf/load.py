"""A folder in Hugging Face's format -> a checkpoint that a run starts from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from shoal_core.errors import UserError
from shoal_core.store import bring, local_folder, open_store
from shoal_core.workload import own_settings
from shoal_workloads.config import PretrainConfig, wrong_fields
from shoal_workloads.hf.config import from_hf_config
from shoal_workloads.hf.weights import check, fill
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.pretrain import Pretrain
from shoal_workloads.start import check_target, write_start

__all__ = ["import_checkpoint", "read_config"]

WEIGHTS = "*.safetensors"


def read_config(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`.

    Raises:
        UserError: no readable `config.json`, or another architecture.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error})", "name a folder with config.json and safetensors"
        ) from error
    try:
        return from_hf_config(found, str(path))
    except (ValidationError, TypeError, KeyError, AttributeError) as error:
        why = wrong_fields(error) if isinstance(error, ValidationError) else repr(error)
        raise UserError(
            f"{path}: is read as no configuration of it ({why})", "give a checkpoint of the DeepSeek-V3 architecture"
        ) from error


def import_checkpoint(source: str | Path, workload: dict[str, Any], out: str | Path) -> dict[str, Any]:
    """Write the weights in `source` as a checkpoint of 0 steps to the new address `out`, whole or not at all.

    From a store they are copied to this machine first.

    Args:
        workload: a job's `workload` section; its `model` is replaced by that of `source`, whose MTP modules, if it has
            none, are new ones.

    Raises:
        UserError: another architecture, tensors missing or too many or of another shape or type, or a bad section.
    """
    check_target(out)
    if (folder := local_folder(source)) is not None:
        return _import(folder, workload, out)
    with tempfile.TemporaryDirectory(prefix="shoal-import-") as copy:
        bring(open_store(source), Path(copy), lambda name: name == "config.json" or fnmatch(name, WEIGHTS))
        try:
            return _import(Path(copy), workload, out)
        except UserError as error:
            raise UserError(error.problem.replace(copy, str(source)), error.remedy) from error


def _import(folder: Path, workload: dict[str, Any], out: str | Path) -> dict[str, Any]:
    """`import_checkpoint` from a folder of this machine."""
    model = read_config(folder)
    has_mtp = model.mtp_depth > 0
    given = workload.get("model")
    asked = given.get("mtp_depth") if isinstance(given, dict) else None
    if asked is not None and not has_mtp:
        model = model.model_copy(update={"mtp_depth": asked})
    path = workload.get("path", "shoal_workloads.pretrain:Pretrain")
    section = {"path": path, **own_settings(workload), "model": model.model_dump()}
    try:
        config = PretrainConfig.model_validate(own_settings(section))
    except ValidationError as error:
        raise UserError(f"workload: {wrong_fields(error)}", "mend the job's workload section") from error
    opened = _open(folder)
    held = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in _headers(opened)}
    check(model, held, mtp=has_mtp, where=str(folder))
    replica = Pretrain(config).build(seed=0)
    ours = {shard.name: shard.local for shard in replica.shards}
    ours |= {f"router_bias.{i}": moe.router.bias for i, moe in enumerate(replica.model.moe_layers())}
    with torch.no_grad():
        fill(model, lambda name: opened[name].get_tensor(name), mtp=has_mtp, where=str(folder), ours=ours)
    write_start(replica, section, out)
    return {"tensors": len(held), "parameters": sum(p.numel() for p in replica.model.parameters())}


def _open(folder: Path) -> dict[str, Any]:
    """The open file of each tensor, by its name.

    Raises:
        UserError: there is no file, one is none of safetensors, or two hold a tensor of one name.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise UserError(f"{folder}: holds no *.safetensors", "name a folder with config.json and safetensors")
    opened: dict[str, Any] = {}
    for path in files:
        try:
            if not path.is_file():
                raise OSError("not a regular file")
            file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error})", "copy the checkpoint again") from error
        for name in file.keys():  # noqa: SIM118
            if name in opened:
                raise UserError(f"{path}: holds {name}, as another file does", "leave one of the two out")
            opened[name] = file
    return opened


def _headers(opened: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, file.get_slice(name)) for name, file in opened.items())
