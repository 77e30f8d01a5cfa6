"""Tensors of the model as tensors of a Hugging Face checkpoint, and back."""

from __future__ import annotations

import torch

from shoal_core.ckpt.boxes import Box
from shoal_core.errors import UserError
from shoal_workloads.hf.files import Files
from shoal_workloads.hf.names import Part, parts_of
from shoal_workloads.hf.values import check_values, scale_of, values
from shoal_workloads.model.config import ModelConfig

__all__ = ["box_of", "check", "part_values", "swapped"]

MANY = 1000
"""Tensors that are missing, beyond which they are not counted."""


def box_of(part: Part) -> Box:
    """Where `part.theirs` lies in our tensor `part.ours`."""
    cut_along = sum(isinstance(place, slice) for place in part.index)
    places = [*part.index, *(slice(0, size) for size in part.shape[cut_along:])]
    return Box(
        tuple(place.start if isinstance(place, slice) else place for place in places),
        tuple(place.stop - place.start if isinstance(place, slice) else 1 for place in places),
    )


def check(c: ModelConfig, files: Files, *, mtp: bool, block: tuple[int, int]) -> None:
    """Hold what a checkpoint's headers say against the model `c`, before anything of either is allocated. block: rows
    and columns that share a scale where weights are FP8.

    Raises:
        UserError: tensors are missing or unknown, or one has another shape or is of a type that is no weight's.
    """
    where = files.store.address
    missing: list[Part] = []
    left = set(files.tensors)
    for part in parts_of(c, mtp=mtp):
        found = files.tensors.get(part.theirs)
        if found is None:
            missing += [] if part.copy else [part]
            if len(missing) > MANY:
                break
            continue
        left -= {part.theirs, scale_of(part.theirs, found) or ""}
        if part.copy:
            continue
        if found.shape != part.shape:
            raise UserError(
                f"{files.where(part.theirs)} has shape {list(found.shape)}, expected {list(part.shape)}",
                "its config.json describes another model; give its own",
            )
        check_values(files, part.theirs, block)
    if missing:
        first = f"{where}: tensor {missing[0].theirs} is missing, expected shape {list(missing[0].shape)}"
        raise UserError(first + _more(len(missing)), "give the checkpoint's own config.json and all of its files")
    for part in parts_of(c, mtp=True):  # MTP modules that are not asked for may stand there
        if (found := files.tensors.get(part.theirs)) is not None:
            left -= {part.theirs, scale_of(part.theirs, found) or ""}
    if left:
        name = min(left)
        first = f"{files.store.where(files.tensors[name].file)}: extra tensor {name}"
        raise UserError(first + _more(len(left)), "its config.json describes another model; give its own")


def _more(count: int) -> str:
    return "" if count == 1 else f", and more than {MANY:,} more" if count > MANY else f", and {count - 1:,} more"


def part_values(files: Files, part: Part, box: Box, block: tuple[int, int]) -> torch.Tensor:
    """What lies in the `box` of our tensor `part.ours`, of which `part` has all: whole rows of it; float32.

    Raises: as `values`.
    """
    inner = box_of(part)
    skipped = len(inner.offsets) - len(part.shape)
    offsets = tuple(mine - start for mine, start in zip(box.offsets, inner.offsets, strict=True))
    found = values(files, part.theirs, Box(offsets[skipped:], box.lengths[skipped:]), block)
    return (swapped(found) if part.swap else found).contiguous()


def swapped(matrix: torch.Tensor) -> torch.Tensor:
    """The halves of its columns in the other order."""
    left, right = matrix.chunk(2, dim=1)
    return torch.cat([right, left], dim=1)
