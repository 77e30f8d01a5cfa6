"""Tensors of the model as tensors of a Hugging Face checkpoint, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from shoal_core.errors import UserError
from shoal_workloads.hf.names import Part, parts_of
from shoal_workloads.model.config import ModelConfig

__all__ = ["check", "cut", "fill"]

FLOATS = ("F32", "BF16", "F16", "F64")
"""Types of weights, by safetensors' names."""
MANY = 1000
"""Tensors that are missing, beyond which they are not counted."""


def cut(part: Part, ours: torch.Tensor) -> torch.Tensor:
    """The tensor they call `part.theirs`, contiguous, of our tensor `part.ours`."""
    found = ours[part.index] if part.index else ours
    return (_swap(found) if part.swap else found).contiguous()


def check(c: ModelConfig, held: Mapping[str, tuple[tuple[int, ...], str]], *, mtp: bool, where: str) -> None:
    """Hold what a checkpoint's headers say against the model `c`, before anything of either is allocated.

    held: shape and safetensors' name of the type of each tensor, by their names.

    Raises:
        UserError: tensors are missing or unknown, or one has another shape or is of a type that is no weight's.
    """
    missing: list[Part] = []
    left = dict(held)
    for part in parts_of(c, mtp=mtp):
        found = left.pop(part.theirs, None)
        if found is None:
            missing += [] if part.copy else [part]
            if len(missing) > MANY:
                break
        elif not part.copy and found[0] != part.shape:
            raise UserError(f"{where}: {part.theirs} has shape {list(found[0])}, expected {list(part.shape)}")
        elif found[1] not in FLOATS:
            raise UserError(
                f"{where}: {part.theirs} is of type {found[1]}, no weight's",
                f"convert it to one of {', '.join(FLOATS)}",
            )
    if missing:
        first = f"{where}: tensor {missing[0].theirs} is missing, expected shape {list(missing[0].shape)}"
        raise UserError(first + _more(len(missing)), "give the checkpoint's own config.json and all of its files")
    for part in parts_of(c, mtp=True):  # MTP modules that are not asked for may stand there
        left.pop(part.theirs, None)
    if left:
        first = f"{where}: extra tensor {min(left)}"
        raise UserError(first + _more(len(left)), "its config.json describes another model; give its own")


def _more(count: int) -> str:
    return "" if count == 1 else f", and more than {MANY:,} more" if count > MANY else f", and {count - 1:,} more"


def fill(
    c: ModelConfig, read: Callable[[str], torch.Tensor], *, mtp: bool, where: str, ours: dict[str, torch.Tensor]
) -> None:
    """Copy a checkpoint, which was checked, into our tensors. read: a tensor by its name there.

    Raises:
        UserError: a weight is not finite.
    """
    for part in parts_of(c, mtp=mtp):
        if part.copy:
            continue
        found = read(part.theirs)
        if not bool(found.isfinite().all()):
            raise UserError(
                f"{where}: {part.theirs} holds values that are not finite", "give a checkpoint that is whole"
            )
        target = ours[part.ours]
        (target[part.index] if part.index else target).copy_(_swap(found) if part.swap else found)


def _swap(matrix: torch.Tensor) -> torch.Tensor:
    left, right = matrix.chunk(2, dim=1)
    return torch.cat([right, left], dim=1)
