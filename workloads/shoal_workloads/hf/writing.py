"""Tensors of a checkpoint to safetensors files that others read, in bounded memory: one file and a little more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal_core.ckpt import alone
from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.errors import UserError
from shoal_workloads.hf.files import INDEX

__all__ = ["Wanted", "write_tensors"]

FILE_BYTES = 4 << 30
"""Of tensors in a file, unless one has more."""
AT_ONCE = 1 << 28
"""Bytes that are read of the checkpoint in one go, unless one tensor has more."""


@dataclass(frozen=True)
class Wanted:
    """A tensor to write.

    Attributes:
        name, shape, dtype: what it is there.
        source, box: what of which tensor of the checkpoint it is.
        changed: makes its values of those.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str
    box: Box
    changed: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(stored: Checkpoint, folder: Path, tensors: Sequence[Wanted]) -> dict[str, Any]:
    """Write `tensors` to `folder`: `model.safetensors`, or several files of 4 GiB with an index.

    Returns:
        `tensors`, `parameters`, `bytes`, `files`.

    Raises:
        UserError: a value is not finite. Damaged, StoreError: the checkpoint cannot be read. OSError: the folder takes
            nothing more.
    """
    from safetensors.torch import save_file

    files = list(_runs(tensors, FILE_BYTES, lambda one: one.bytes))
    where: dict[str, str] = {}
    for number, some in enumerate(files, start=1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        content = {one.name: tensor for one, tensor in _read(stored, some)}
        save_file(content, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(content, name))
    total = sum(one.bytes for one in tensors)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    parameters = sum(torch.Size(one.shape).numel() for one in tensors)
    return {"tensors": len(where), "parameters": parameters, "bytes": total, "files": len(files)}


def _read(stored: Checkpoint, tensors: Sequence[Wanted]) -> Iterator[tuple[Wanted, torch.Tensor]]:
    """The values of `tensors`, a few read at once: those that lie in one block read it once."""
    for some in _runs(tensors, AT_ONCE, lambda one: one.box.numel * 4):
        boxes: dict[str, list[Box]] = {}
        for one in some:
            boxes.setdefault(one.source, []).append(one.box)
        found = {name: iter(parts) for name, parts in alone.read_boxes(stored, boxes).items()}
        for one in some:
            tensor = next(found[one.source])
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                problem = f"{stored.folder.address}: {one.source} holds values that are not finite"
                raise UserError(problem, "export an older checkpoint")
            yield one, one.changed(tensor.view(one.box.lengths)).reshape(one.shape).to(one.dtype, copy=True)


def _runs(tensors: Sequence[Wanted], limit: int, size: Callable[[Wanted], int]) -> Iterator[list[Wanted]]:
    """`tensors` in their order, so many together as have no more than `limit`; one that has more is alone."""
    run: list[Wanted] = []
    total = 0
    for one in tensors:
        if run and total + size(one) > limit:
            yield run
            run, total = [], 0
        run.append(one)
        total += size(one)
    if run:
        yield run
