"""Checkpoints written and read by one process, which holds the whole state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from shoal_core.ckpt.among import reading
from shoal_core.ckpt.boxes import whole
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.plan import Want, plan
from shoal_core.ckpt.read import fetch
from shoal_core.ckpt.state import bytes_of, held
from shoal_core.ckpt.together import ALONE, save
from shoal_core.ckpt.whole import Checkpoint

if TYPE_CHECKING:
    import torch

__all__ = ["read", "write"]


def write(folder: Folder, state: Mapping[str, Any], about: Mapping[str, Any], *, replace: bool = False) -> int:
    """Write whole tensors as the checkpoint in `folder`, whose marker says `about`, `steps` among it. Returns its
    bytes. replace: the marker takes the place of one that is there.

    Raises:
        Uncommitted: it could not be written. Unfit: a tensor cannot be saved.
    """
    content = {piece: bytes_of(local.cpu().contiguous()) for piece, local in held(state).items()}
    return save(folder, 0, content, ALONE, about, replace=replace)


def read(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, whole, in the CPU's memory: those named, or all.

    Raises:
        Damaged: they are not what was committed. StoreError: the store does not answer. KeyError: there is none of a
            name.
    """
    import torch

    held = checkpoint.index.tensors
    kinds = {name: held[name] for name in (held if names is None else names)}
    found = {name: torch.empty(one.shape, dtype=getattr(torch, one.dtype)) for name, one in kinds.items()}
    wanted = {name: Want(one.dtype, one.shape, (whole(one.shape),)) for name, one in kinds.items()}
    targets = {name: [tensor] for name, tensor in found.items()}
    with reading(checkpoint.folder):
        fetch(checkpoint.folder, plan(checkpoint.index, wanted, checkpoint.folder.address), targets)
    return found
