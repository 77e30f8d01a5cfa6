"""Initial values of a user's model from a folder of safetensors: of them each worker reads its own rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from shoal_core.ckpt.boxes import Box
from shoal_workloads.hf.fill import Target, fill, targets_of, ties_of
from shoal_workloads.parallel.shards import ParamShard
from shoal_workloads.torchmodel.building import kept_buffers

__all__ = ["Weights"]


@dataclass(frozen=True)
class Weights:
    """What lies at `address`, for a model of these names: `ties`, further names of parameters that have several;
    `unused`, buffers that may lie there and are not kept."""

    address: str
    ties: dict[str, list[str]]
    unused: list[str]

    @classmethod
    def of(cls, address: str, model: nn.Module) -> Self:
        """model: not spread yet."""
        kept = kept_buffers(model)
        return cls(address, ties_of(model), [name for name, _ in model.named_buffers() if name not in kept])

    def check(self, model: nn.Module) -> None:
        """Hold names, shapes and types against those of a model, and read nothing.

        Raises:
            UserError: they differ, or nothing is there.
        """
        targets = []
        for name, tensor in (*model.named_parameters(), *kept_buffers(model).items()):
            shape = tuple(tensor.shape)
            none = (0, *shape[1:]) if shape else ()
            targets.append(Target(name, shape, Box((0,) * len(shape), none), torch.empty(none, dtype=tensor.dtype)))
        fill(self.address, targets, self.ties, self.unused)

    def read(self, shards: Sequence[ParamShard], buffers: dict[str, torch.Tensor]) -> None:
        """Fill this worker's part of every parameter, and buffers that are kept.

        Raises:
            UserError: as `check`, or a value is not finite.
        """
        fill(self.address, targets_of(shards, buffers), self.ties, self.unused)
