"""Tensors of a checkpoint that are all zero: its index has no block of them, and nothing is read for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shoal_core.ckpt.index import Tensor
from shoal_core.ckpt.plan import Want, check_kind

if TYPE_CHECKING:
    import torch

__all__ = ["set_zeros", "stored"]


def stored(known: Mapping[str, Tensor], wanted: Mapping[str, Want]) -> dict[str, Want]:
    """What of `wanted` lies in the files of a checkpoint, or nowhere. known: the tensors of its index."""
    return {name: want for name, want in wanted.items() if name not in known or known[name].blocks}


def set_zeros(
    known: Mapping[str, Tensor],
    wanted: Mapping[str, Want],
    targets: Mapping[str, Sequence[torch.Tensor]],
    where: str,
) -> dict[str, Want]:
    """Fill the destinations of what is all zero; returns the rest of `wanted`, which is to be read. where: the
    checkpoint.

    Raises:
        Unfit: one has another shape or dtype there.
    """
    rest = stored(known, wanted)
    for name, want in wanted.items():
        if name not in rest:
            check_kind(name, want, known[name], where)
            for target in targets[name]:
                target.zero_()
    return rest
