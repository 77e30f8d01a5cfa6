"""A checkpoint of a `TorchWorkload` -> safetensors by the model's names; of a model of `transformers`, the folder that
`from_pretrained` opens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from shoal_core.ckpt.boxes import whole
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.errors import UserError
from shoal_core.loading import load_workload, make_workload
from shoal_core.store import open_store
from shoal_workloads.config import wrong_fields
from shoal_workloads.hf.writing import Wanted, write_tensors
from shoal_workloads.torchmodel.building import hollow, kept_buffers
from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["is_of_torch", "write_model"]

TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
"""Names of a tokenizer's files."""
GENERATION = "generation_config.json"


def is_of_torch(stored: Checkpoint) -> bool:
    """Whether a checkpoint is of a `TorchWorkload`, by the class that its marker names.

    Raises:
        UserError: that cannot be imported here.
    """
    section = stored.marker.get("workload")
    path = section.get("path") if isinstance(section, dict) else None
    if path is None or str(path).startswith("shoal_workloads.pretrain:"):
        return False
    try:
        return issubclass(load_workload(path), TorchWorkload)
    except UserError as error:
        remedy = "run it where the class can be imported: PYTHONPATH=FOLDER shoal export ..."
        raise UserError(f"{stored.folder.address}: {error.problem}", remedy) from error


def write_model(
    stored: Checkpoint, folder: Path, *, ema: bool, dtype: torch.dtype, tokenizer: str | None
) -> dict[str, Any]:
    """Write the model of a checkpoint to `folder`. tokenizer: a folder or an address whose tokenizer comes along; none:
    that of the weights that the run began from.

    Returns:
        What `write_tensors` does, and `beside`, the names of the files that came along.

    Raises: as `write_tensors`; UserError too: the class, its settings or its model are not those of the checkpoint, no
        averages were kept, or there is no tokenizer in a folder that was named.
    """
    try:
        workload = make_workload(stored.marker["workload"])
    except ValidationError as error:
        problem = f"{stored.folder.address}: its workload's settings are none any more ({wrong_fields(error)})"
        raise UserError(problem, "export it with the class that it was trained with") from error
    assert isinstance(workload, TorchWorkload)
    model = hollow(workload, 0)
    tensors = _tensors(stored, model, ema=ema, dtype=dtype)
    if _is_of_transformers(model):
        _check_names(stored, model, tensors)
        _write_config(model, folder, dtype)
    began = workload.weights(workload.config)
    copied = [] if began is None else _copied(began, folder, (GENERATION,))
    tokenizer_at = began if tokenizer is None else tokenizer
    files = [] if tokenizer_at is None else _copied(tokenizer_at, folder, TOKENIZER)
    if tokenizer is not None and not files:
        raise UserError(f"{tokenizer}: holds no tokenizer", "name a folder with tokenizer.json")
    return {**write_tensors(stored, folder, tensors), "beside": [*copied, *files]}


def _tensors(stored: Checkpoint, model: nn.Module, *, ema: bool, dtype: torch.dtype) -> list[Wanted]:
    """What is written of a model, by its names: of parameters that are tied the first.

    Raises:
        UserError: the checkpoint is of another model.
    """
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    values = {**dict(model.named_parameters()), **kept_buffers(model)}
    known = stored.index.tensors
    if ema and not any(name.startswith("ema.") for name in known):
        raise UserError(
            f"{stored.folder.address}: holds no averages", "train with ema_decay: 0.999, or leave --ema out"
        )
    found = []
    for name, value in values.items():
        kind = ("ema" if ema and trained[name] else "model") if name in trained else "buffer"
        source, shape = f"{kind}.{name}", tuple(value.shape)
        there = known[source].shape if source in known else None
        if there != shape:
            has = "none" if there is None else list(there)
            raise UserError(
                f"{stored.folder.address}: tensor {source} has shape {has}, the model's {list(shape)}",
                "export it with the class that it was trained with",
            )
        kept = dtype if value.is_floating_point() else value.dtype
        found.append(Wanted(name, shape, kept, source, whole(shape)))
    return found


def _is_of_transformers(model: nn.Module) -> bool:
    library = sys.modules.get("transformers")  # whoever built such a model has imported it
    return library is not None and isinstance(model, library.PreTrainedModel)


def _check_names(stored: Checkpoint, model: Any, tensors: list[Wanted]) -> None:
    """Whether a model of `transformers` is called on disk what it is called in memory.

    Raises:
        UserError: its tensors are put together when it is loaded, as experts are, and would have to be taken apart.
    """
    from transformers.core_model_loading import revert_weight_conversion

    names = {one.name for one in tensors}
    state = {one.name: torch.empty(one.shape, device="meta") for one in tensors}
    on_disk = set(revert_weight_conversion(model, state))
    if on_disk != names:
        raise UserError(
            f"{stored.folder.address}: transformers stores a {type(model).__name__} under other names than it has in "
            f"memory ({min(names - on_disk)})",
            "load its tensors with shoal_core.ckpt.alone.read and call the model's own save_pretrained",
        )


def _write_config(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """What `save_pretrained` writes beside the weights."""
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _copied(address: str, folder: Path, patterns: Sequence[str]) -> list[str]:
    """Copy the files at an address whose names are of one of the `patterns`; which they are."""
    store = open_store(address)
    names = [one.name for one in store.list() if "/" not in one.name]
    found = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))
    for name in found:
        (folder / name).write_bytes(store.get(name))
    return found
