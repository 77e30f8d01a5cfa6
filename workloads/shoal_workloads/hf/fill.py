"""Parameters of any model from a Hugging Face checkpoint whose tensors are called as the model's are: initial values to
fine-tune from. Each worker reads the rows that it holds, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from shoal_core.ckpt.boxes import Box, rows, whole
from shoal_core.errors import UserError
from shoal_core.store import Store, exists
from shoal_workloads.hf.config import scaled_blocks
from shoal_workloads.hf.files import Files, read_json
from shoal_workloads.hf.values import SCALE, check_values, scale_of, values
from shoal_workloads.parallel.shards import ParamShard

__all__ = ["Target", "fill", "targets_of", "ties_of"]

AT_ONCE = 1 << 25
"""Bytes of a parameter that are read in one go, unless one row has more."""
READERS = 4
SHOWN = 3
"""Names in a message."""


@dataclass(frozen=True)
class Target:
    """A tensor `local` that is to hold the `box` of the parameter `name`, which is of `shape`."""

    name: str
    shape: tuple[int, ...]
    box: Box
    local: torch.Tensor


def targets_of(shards: Iterable[ParamShard], buffers: Mapping[str, torch.Tensor]) -> list[Target]:
    """What a worker holds of a model: its part of every parameter, and buffers, which are whole everywhere."""
    cut = [(shard, shard.local.detach()) for shard in shards]
    return [
        *(Target(s.name, s.shape, Box(s.first, tuple(local.shape)), local) for s, local in cut),
        *(Target(name, tuple(b.shape), whole(tuple(b.shape)), b) for name, b in buffers.items()),
    ]


def ties_of(model: nn.Module) -> dict[str, list[str]]:
    """Further names of parameters that have several, by the first: a head's is one of the embedding's if they are tied.
    To be asked before the model is spread."""
    first: dict[nn.Parameter, str] = {}
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, name) != name:
            found.setdefault(first[parameter], []).append(name)
    return found


def fill(
    address: str | os.PathLike[str],
    targets: Iterable[Target],
    ties: Mapping[str, Sequence[str]] | None = None,
    unused: Collection[str] = (),
) -> int:
    """Fill `targets`, at least one a parameter of the model (an empty one where this worker holds nothing of it), in
    their own dtypes. Returns the bytes of the tensors that were read.

    Args:
        address: a folder or a store with safetensors files; of the FP8 form in the blocks of its `config.json`.
        ties: see `ties_of`; of several names the first that the checkpoint has counts.
        unused: names that may stand there and are not read, such as those of buffers.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape or type, told by its name before any is read; or a
            value is not finite. StoreError: the store does not answer.
    """
    files = Files.open(address)
    block = _block(files.store)
    wanted, ties = list(targets), ties or {}
    source = {
        one.name: next((name for name in (one.name, *ties.get(one.name, ())) if name in files.tensors), None)
        for one in wanted
    }
    _check_names(files, source, {*unused, *(name for names in ties.values() for name in names)})
    reads: list[tuple[str, Box, torch.Tensor]] = []
    for one in wanted:
        name = source[one.name]
        assert name is not None
        found = files.tensors[name]
        if found.shape != one.shape:
            problem = f"{files.where(name)} has shape {list(found.shape)}, the model's has {list(one.shape)}"
            raise UserError(problem, "build the model by the config.json beside the weights")
        check_values(files, name, block)
        for box, _ in rows(one.box, one.local.element_size(), AT_ONCE):
            if box.numel:
                reads.append((name, box, one.local[box.inside(one.box)]))

    def read(one: tuple[str, Box, torch.Tensor]) -> int:
        name, box, target = one
        with torch.no_grad():
            target.copy_(values(files, name, box, block, target.dtype))
        stored = files.tensors[name]
        return box.numel * (stored.bytes // max(1, torch.Size(stored.shape).numel()))

    with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as pool:
        return sum(pool.map(read, reads))


def _block(store: Store) -> tuple[int, int]:
    """Rows and columns of FP8 weights that share a scale."""
    if not exists(store, "config.json"):
        return scaled_blocks({}, "")
    found = read_json(store, "config.json", "give the checkpoint's own config.json, or none")
    return scaled_blocks(found, store.where("config.json"))


def _check_names(files: Files, source: Mapping[str, str | None], unused: Collection[str]) -> None:
    """Hold the names of the model against those of the checkpoint. source: what each parameter is read from.

    Raises:
        UserError: some are on one side alone.
    """
    used = {name for name in source.values() if name is not None}
    scales = {scale for name in used if (scale := scale_of(name, files.tensors[name]))}
    missing = [name for name, found in source.items() if found is None]
    extra = sorted(files.tensors.keys() - used - scales - set(unused))
    extra = [name for name in extra if name.removesuffix(SCALE) not in unused]
    if not missing and not extra:
        return
    said = [
        f"{what}: {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN:,} more' if len(names) > SHOWN else ''}"
        for what, names in (("the model has, and the files do not", missing), ("the files have", extra))
        if names
    ]
    raise UserError(
        f"{files.store.address}: its tensors are not the model's: {'; '.join(said)}",
        "build the model by the config.json beside the weights, so that its parameters have their names; or leave "
        "`weights` out and load them in build_model",
    )
