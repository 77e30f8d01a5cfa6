"""Checkpoints written and read by one process, which holds the whole state or makes it as it goes."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal_core.ckpt.among import reading
from shoal_core.ckpt.boxes import Box, whole
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.index import Described
from shoal_core.ckpt.pieces import Piece, block_bytes, check
from shoal_core.ckpt.plan import Want, plan
from shoal_core.ckpt.read import fetch
from shoal_core.ckpt.state import bytes_of, held
from shoal_core.ckpt.together import ALONE, Uncommitted, clean, save
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.ckpt.write import Attempt, commit
from shoal_core.ckpt.write import write as write_pieces
from shoal_core.ckpt.zeros import set_zeros
from shoal_core.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["read", "read_boxes", "stream", "write"]


def write(folder: Folder, state: Mapping[str, Any], about: Mapping[str, Any], *, replace: bool = False) -> int:
    """Write whole tensors as the checkpoint in `folder`, whose marker says `about`, `steps` among it. Returns its
    bytes. replace: the marker takes the place of one that is there.

    Raises:
        Uncommitted: it could not be written. Unfit: a tensor cannot be saved.
    """
    content = {piece: bytes_of(local.cpu().contiguous()) for piece, local in held(state).items()}
    return save(folder, 0, content, ALONE, about, replace=replace)


def stream(
    folder: Folder,
    pieces: Sequence[Piece],
    content: Callable[[Piece], memoryview],
    zeros: Described,
    about: Mapping[str, Any],
) -> int:
    """Write a checkpoint that is never whole in memory; returns its bytes. pieces: which tile the tensors; content: is
    asked for the bytes of each when it is its turn (`write.in_order`); zeros: further tensors, which hold nothing else.

    Raises:
        Uncommitted: another checkpoint became whole there meanwhile. StoreError: the store does not take it. Whatever
            `content` raises. After any of them nothing of it is left.
    """
    check(pieces)
    attempt = Attempt(0, secrets.token_hex(4))
    try:
        written = write_pieces(folder, attempt, 0, pieces, content, block_bytes(pieces))
        size = commit(folder, attempt, pieces, [written], about, replace=False, zeros=zeros)
        if size is None:
            raise Uncommitted(f"{folder.address}: another checkpoint was put there meanwhile", "name another place")
    except BaseException:
        clean(folder, attempt)
        with contextlib.suppress(UserError):  # what failed first is told
            folder.delete([attempt.index])  # an empty folder goes with it, whether it is there or not
        raise
    return size


def read(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, whole, in the CPU's memory: those named, or all.

    Raises:
        Damaged: they are not what was committed. StoreError: the store does not answer. KeyError: there is none of a
            name.
    """
    kinds = checkpoint.index.tensors
    named = list(kinds if names is None else names)
    found = read_boxes(checkpoint, {name: [whole(kinds[name].shape)] for name in named})
    return {name: parts[0] for name, parts in found.items()}


def read_boxes(checkpoint: Checkpoint, boxes: Mapping[str, Sequence[Box]]) -> dict[str, list[torch.Tensor]]:
    """Parts of tensors of a checkpoint, in the CPU's memory, by the tensors' names; of each block that holds any of a
    part all is read. Raises: as `read`."""
    import torch

    kinds = {name: checkpoint.index.tensors[name] for name in boxes}
    targets = {
        name: [torch.empty(box.lengths, dtype=getattr(torch, kinds[name].dtype)) for box in some]
        for name, some in boxes.items()
    }
    wanted = {name: Want(kinds[name].dtype, kinds[name].shape, tuple(some)) for name, some in boxes.items()}
    wanted = set_zeros(kinds, wanted, targets, checkpoint.folder.address)
    with reading(checkpoint.folder):
        fetch(checkpoint.folder, plan(checkpoint.index, wanted, checkpoint.folder.address), targets)
    return targets
