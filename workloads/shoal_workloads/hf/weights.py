"""Tensors of the model as tensors of a Hugging Face checkpoint, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from shoal_data.errors import InputError
from shoal_workloads.hf.names import Part, parts_of
from shoal_workloads.model.config import ModelConfig

__all__ = ["cut", "fill", "to_hf_state"]


def cut(part: Part, ours: torch.Tensor) -> torch.Tensor:
    """The tensor they call `part.theirs`, contiguous, of our tensor `part.ours`."""
    found = ours[part.index] if part.index else ours
    return (_swap(found) if part.swap else found).contiguous()


def to_hf_state(c: ModelConfig, state: dict[str, torch.Tensor], *, mtp: bool) -> dict[str, torch.Tensor]:
    """A whole model under their names. state: by our names, as `parts_of` has them."""
    return {part.theirs: cut(part, state[part.ours]) for part in parts_of(c, mtp=mtp)}


def fill(
    c: ModelConfig,
    available: Iterable[str],
    read: Callable[[str], torch.Tensor],
    *,
    mtp: bool,
    where: str,
    ours: dict[str, torch.Tensor],
) -> None:
    """Copy a checkpoint into our tensors. available: the names it holds; read: one of them as a tensor.

    Raises:
        InputError: a tensor is missing, unknown, or of another shape.
    """
    names, expected = set(available), list(parts_of(c, mtp=mtp))
    known = {part.theirs for part in expected} | {part.theirs for part in parts_of(c, mtp=True)}
    for name in sorted(names - known):
        raise InputError(f"{where}: extra tensor {name}", "its config.json describes another model; give its own")
    for part in expected:
        if part.copy:
            continue
        if part.theirs not in names:
            raise InputError(f"{where}: tensor {part.theirs} is missing, expected shape {list(part.shape)}")
        found = read(part.theirs)
        if tuple(found.shape) != part.shape:
            raise InputError(f"{where}: {part.theirs} has shape {list(found.shape)}, expected {list(part.shape)}")
        target = ours[part.ours]
        (target[part.index] if part.index else target).copy_(_swap(found) if part.swap else found)


def _swap(matrix: torch.Tensor) -> torch.Tensor:
    left, right = matrix.chunk(2, dim=1)
    return torch.cat([right, left], dim=1)
