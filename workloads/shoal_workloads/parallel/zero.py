"""ZeRO-1: parameters and their gradients whole while a step runs, optimizer and master copy in shards (report,
section 3.2: with pipeline stages, gathering parameters for every micro-batch would cost more than it saves).

Each parameter has holders: the workers of the cell that compute with it. Gradients are accumulated locally in float32,
summed and scattered over the holders once a step; after an update the parameters are gathered again. Shapes of
parameters: vectors (D,), matrices (O, I), stacked experts (E, O, I); matrices are cut along O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from shoal_workloads.parallel.shards import ParamShard

__all__ = ["BUCKET", "Held", "Zero"]

BUCKET = 1 << 24  # elements gathered or scattered at once


@dataclass(frozen=True)
class Held:
    """A parameter of this worker.

    Attributes:
        name: of the parameter in the whole model.
        parameter: what is computed with; of experts those of this worker alone.
        mesh: ranks of all that hold a part of it. (holders,); of experts (holders, ep): column e is one ep index's.
    """

    name: str
    parameter: nn.Parameter
    mesh: torch.Tensor

    @property
    def dim(self) -> int:
        """The dimension that is cut into shards: of experts the width, since their number is split already."""
        return self.mesh.dim() - 1

    def holders(self, rank: int) -> tuple[int, ...]:
        """Those that compute with the same values as `rank`."""
        ranks = self.mesh if self.mesh.dim() == 1 else self.mesh[:, int((self.mesh == rank).nonzero()[0, 1])]
        return tuple(ranks.tolist())


@dataclass
class _Bucket:
    """Parameters of one type that are gathered and scattered together. `shards[i]`: the master copy of
    `parameters[i]`, cut along `dims[i]`; `places[i]`: its number among all shards."""

    group: dist.ProcessGroup | None
    holders: int
    parameters: list[nn.Parameter] = field(default_factory=list)
    shards: list[nn.Parameter] = field(default_factory=list)
    dims: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def pieces(self, tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Views of each holder's parts of `tensors`, which are like the parameters."""
        cut = [_cut(tensor, self.holders, dim) for tensor, dim in zip(tensors, self.dims, strict=True)]
        return [[parts[holder] for parts in cut] for holder in range(self.holders)]

    def width(self) -> int:
        """Elements of the first, which is the largest, holder's shards."""
        return sum(part.numel() for part in self.pieces(self.parameters)[0])


class Zero:
    """`shards`: the master shards, as the optimizer, heals and checkpoints see them; their gradients are what
    `scatter` writes. groups: by their ranks (see `make_groups`)."""

    def __init__(
        self, held: Sequence[Held], groups: dict[tuple[int, ...], dist.ProcessGroup], rank: int, device: str
    ) -> None:
        meshes: dict[tuple[int, ...], DeviceMesh] = {}
        self.shards: list[ParamShard] = []
        self._buckets: list[_Bucket] = []
        self._sums: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._gathered = False
        latest: dict[tuple[tuple[int, ...], torch.dtype], tuple[_Bucket, int]] = {}
        for one in held:
            key = (*one.mesh.shape, *one.mesh.flatten().tolist())
            if key not in meshes:
                # no groups of its own: it only says where shards lie
                meshes[key] = DeviceMesh(device, one.mesh, _init_backend=False, _rank=rank)
            shard = _master(one, meshes[key], rank)
            self.shards.append(shard)
            holders = one.holders(rank)
            kind = (holders, one.parameter.dtype)
            bucket, filled = latest.get(kind, (None, BUCKET))
            if bucket is None or filled + one.parameter.numel() > BUCKET:
                group = groups[tuple(sorted(holders))] if len(holders) > 1 else None
                bucket, filled = _Bucket(group, len(holders)), 0
                self._buckets.append(bucket)
            latest[kind] = (bucket, filled + one.parameter.numel())
            bucket.parameters.append(one.parameter)
            bucket.shards.append(shard.parameter)
            bucket.dims.append(one.dim)
            bucket.places.append(len(self.shards) - 1)
            self._accumulate(one.parameter)

    def begin(self) -> None:
        """Forget all gradients."""
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.grad = None
        for _, total in self._sums:
            total.zero_()

    def changed(self) -> None:
        """The master shards were written to."""
        self._gathered = False

    @torch.no_grad()
    def gather(self) -> bool:
        """Make the parameters those of the master shards; whether they were not. Collective over the cell, all of whose
        workers changed theirs together.

        Raises:
            RuntimeError: a peer is gone.
        """
        if self._gathered:
            return False
        for bucket in self._buckets:
            dtype, width = bucket.parameters[0].dtype, bucket.width()
            whole = bucket.parameters[0].new_zeros(bucket.holders, width)
            mine = torch.cat([shard.flatten() for shard in bucket.shards]).to(dtype)
            if bucket.group is None:
                whole[0] = mine
            else:
                padded = torch.cat([mine, mine.new_zeros(width - len(mine))])
                dist.all_gather_single(whole.view(-1), padded, group=bucket.group)
            for row, pieces in zip(whole, bucket.pieces([p.data for p in bucket.parameters]), strict=True):
                parts = row[: sum(piece.numel() for piece in pieces)].split([piece.numel() for piece in pieces])
                for piece, part in zip(pieces, parts, strict=True):
                    piece.copy_(part.view_as(piece))
        self._gathered = True
        return True

    @torch.no_grad()
    def scatter(self, out: Sequence[torch.Tensor]) -> None:
        """Sum the gradients over the holders, each shard's to its place in `out`. The local ones stay and may grow.
        Collective over the cell.

        Raises:
            RuntimeError: a peer is gone.
        """
        totals = {id(parameter): total for parameter, total in self._sums}
        for bucket in self._buckets:
            grads = [totals.get(id(p), p.grad) for p in bucket.parameters]
            known = [
                p.new_zeros(p.shape, dtype=torch.float32) if g is None else g
                for p, g in zip(bucket.parameters, grads, strict=True)
            ]
            width = bucket.width()
            whole = torch.zeros(bucket.holders, width, device=known[0].device)
            for row, pieces in zip(whole, bucket.pieces(known), strict=True):
                torch.cat([piece.flatten() for piece in pieces], out=row[: sum(piece.numel() for piece in pieces)])
            mine = whole[0]
            if bucket.group is not None:
                mine = torch.empty_like(mine)
                dist.reduce_scatter_single(mine, whole.view(-1), group=bucket.group)
            parts = mine[: sum(s.numel() for s in bucket.shards)].split([s.numel() for s in bucket.shards])
            for place, part in zip(bucket.places, parts, strict=True):
                out[place].copy_(part.view_as(out[place]))

    def _accumulate(self, parameter: nn.Parameter) -> None:
        """Sum gradients in float32, of whatever type the parameter is."""
        if parameter.dtype == torch.float32:
            return
        total = torch.zeros_like(parameter, dtype=torch.float32)
        self._sums.append((parameter, total))

        def add(p: torch.Tensor) -> None:
            if p.grad is not None:
                total.add_(p.grad)
                p.grad = None

        parameter.register_post_accumulate_grad_hook(add)


def _cut(tensor: torch.Tensor, parts: int, dim: int) -> list[torch.Tensor]:
    """As DTensor and torch.chunk divide, but always `parts`: the last may be short or empty."""
    size = tensor.shape[dim]
    rows = -(-size // parts)
    edges = [min(size, part * rows) for part in range(parts + 1)]
    return [tensor.narrow(dim, start, end - start) for start, end in pairwise(edges)]


def _master(held: Held, mesh: DeviceMesh, rank: int) -> ParamShard:
    """The master shard of this worker, float32, uninitialised."""
    parameter, dim, holders = held.parameter, held.dim, held.holders(rank)
    shape, first = list(parameter.shape), [0] * parameter.dim()
    place = holders.index(rank)
    parts = _cut(parameter.detach(), len(holders), dim)
    first[dim] = sum(part.shape[dim] for part in parts[:place])
    placements: tuple[Shard, ...] = (Shard(dim),)
    if held.mesh.dim() == 2:
        first[0] = int((held.mesh == rank).nonzero()[0, 1]) * shape[0]
        shape[0] *= held.mesh.shape[1]
        placements = (Shard(1), Shard(0))
    local = nn.Parameter(torch.empty(parts[place].shape, device=parameter.device))
    return ParamShard(held.name, local, tuple(shape), tuple(first), 1.0, mesh, placements)
