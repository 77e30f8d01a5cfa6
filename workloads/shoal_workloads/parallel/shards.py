"""The local shards of a model's parameters: where they lie in the whole.

Shapes of parameters: vectors (D,), matrices (O, I), stacked experts (E, O, I).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from shoal_core.ckpt.boxes import Box
from shoal_core.ckpt.pieces import Piece

__all__ = ["ParamShard"]


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

    def by_row(self, name: str, local: torch.Tensor, rows: Sequence[int]) -> Iterator[tuple[Piece, torch.Tensor]]:
        """The rows of a tensor of the parameter's kind, each with where it lies in the whole of this `name`: that at
        place p is row `rows[p]` of it."""
        dtype = str(local.dtype).removeprefix("torch.")
        for place in range(len(local)):
            offsets = rows[self.first[0] + place], *self.first[1:]
            yield Piece(name, dtype, self.shape, Box(offsets, (1, *local.shape[1:]))), local[place : place + 1]
