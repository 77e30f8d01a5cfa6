"""The local shards of a model's parameters: where they lie in the whole, and what they are at first.

Shapes of parameters: vectors (D,), matrices (O, I), stacked experts (E, O, I).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

__all__ = ["ParamShard", "init_shards"]


@dataclass(frozen=True)
class ParamShard:
    """Where one parameter's local shard lies in the whole: rows `[first[d], first[d] + local.shape[d])` of dim d.

    `grad_scale` turns FSDP's mean over its workers back into a sum."""

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    first: tuple[int, ...]
    grad_scale: float
    mesh: DeviceMesh | None
    placements: tuple[Shard, ...]

    @property
    def local(self) -> torch.Tensor:
        """This worker's shard, sharing storage with the parameter."""
        data = self.parameter.data
        return data.to_local() if isinstance(data, DTensor) else data

    @property
    def local_grad(self) -> torch.Tensor | None:
        """This worker's shard of the gradient, to be multiplied by `grad_scale`."""
        grad = self.parameter.grad
        return grad.to_local() if isinstance(grad, DTensor) else grad

    def whole(self, local: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's kind (value, moment, average) as a DTensor view of the whole; plain in a cell
        of one. It shares storage with `local` wherever that lies: a DTensor of another device than its mesh's would be
        a copy, and what is loaded into a copy is lost."""
        if self.mesh is None:
            return local
        mesh, device = self.mesh, local.device.type
        if device != mesh.device_type:
            # no groups of its own: it only says where shards lie
            mesh = DeviceMesh(device, mesh.mesh, _init_backend=False, _rank=mesh.get_rank())
        stride = torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(
            local, mesh, self.placements, run_check=False, shape=torch.Size(self.shape), stride=stride
        )


def init_shards(shards: Iterable[ParamShard], seed: int, std: float) -> None:
    """Set initial values that depend on the seed and the parameter's name alone, not on how the cell is laid out: norm
    weights one, everything else normal with `std` (report, section 4.2: 0.006).

    Each matrix is drawn whole from its own generator and this worker's part kept; of the stacked experts each is drawn
    by itself, so that nobody draws experts it does not hold."""
    for shard in shards:
        local = shard.local
        if len(shard.shape) == 1:
            local.fill_(1.0)
        elif len(shard.shape) == 2:
            local.copy_(_part(_draw(shard.name, seed, std, shard.shape), local, shard.first))
        else:
            for i in range(len(local)):
                whole = _draw(f"{shard.name}.{shard.first[0] + i}", seed, std, shard.shape[1:])
                local[i].copy_(_part(whole, local[i], shard.first[1:]))


def _draw(name: str, seed: int, std: float, shape: tuple[int, ...]) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def _part(whole: torch.Tensor, local: torch.Tensor, first: tuple[int, ...]) -> torch.Tensor:
    for dim, start in enumerate(first):
        whole = whole.narrow(dim, start, local.shape[dim])
    return whole
