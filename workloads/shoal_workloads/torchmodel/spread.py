"""Spreads a user's model over the workers of a cell: FSDP2 gathers it block by block, each worker keeps its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from shoal_core.grid import Grid
from shoal_workloads.parallel.rounded import Scatter
from shoal_workloads.parallel.shards import ParamShard

__all__ = ["Rounds", "Spread", "default_blocks", "spread", "whole_blocks"]


class Rounds:
    """Gradients of one worker's `shards` of `model`, summed over the cell in units of `grid`, of one micro-batch of the
    cell: what each worker makes of its own samples is rounded before it is added to another's. Changes the model."""

    def __init__(self, model: nn.Module, grid: Grid) -> None:
        self._grid, self._scatter = grid, Scatter(grid, None)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_reduce_scatter(self._scatter)

    def begin(self) -> None:
        """Forget all gradients."""
        self._scatter.sums.clear()

    def write(self, shards: Sequence[ParamShard], parts: Sequence[torch.Tensor]) -> None:
        """Write every shard's gradient to its part, int64.

        Raises:
            RuntimeError: a block was called several times, and its gradients were added up otherwise.
        """
        left = set(self._scatter.sums)
        for shard, part in zip(shards, parts, strict=True):
            grad = shard.local_grad
            if grad is None:
                part.zero_()
            elif shard.mesh is None:
                part.copy_(self._grid.round(grad))
            else:  # FSDP cuts what it is handed into the gradients of shards, and of the integers the same are these
                storage = grad.untyped_storage().data_ptr()
                left.discard(storage)
                part.copy_(self._scatter.sums[storage].as_strided(grad.shape, grad.stride(), grad.storage_offset()))
        if left:
            raise RuntimeError("reduce: exact: a block of the model is called several times in one forward")


@dataclass(frozen=True)
class Spread:
    """`model`, ready to be called; `shards`: this worker's part of every parameter, in the order of the model, each
    once under its first name. `rank` of `workers`. Parameters without dimensions are whole on every worker."""

    model: nn.Module
    shards: Sequence[ParamShard]
    rank: int
    workers: int


def default_blocks(model: nn.Module) -> list[nn.Module]:
    """The children of the longest `ModuleList`, or of all that are as long: the layers of nearly every transformer."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    longest = max((len(one) for one in lists), default=0)
    return [block for one in lists if len(one) == longest for block in one]


def whole_blocks(model: nn.Module, blocks: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of the `blocks` that can be gathered by themselves: each once, and none that shares a parameter with
    another module outside it, whose parameters are gathered with the rest then."""
    users: Counter[nn.Parameter] = Counter()
    for module in model.modules():
        users.update(p for p in module.parameters(recurse=False))
    found = []
    for block in dict.fromkeys(blocks):
        inside: Counter[nn.Parameter] = Counter()
        for module in block.modules():
            inside.update(p for p in module.parameters(recurse=False))
        if block is not model and inside and all(users[p] == times for p, times in inside.items()):
            found.append(block)
    return found


def spread(model: nn.Module, blocks: Sequence[nn.Module], device: str) -> Spread:
    """Spread a whole model over the current default process group (a world of one where there is none). Collective."""
    workers = dist.get_world_size() if dist.is_initialized() else 1
    if workers == 1:
        model.to(device)
        named = list(model.named_parameters())
        return Spread(model, [_shard(name, p, 0, 1, None) for name, p in named], 0, 1)
    mesh = init_device_mesh(device, (workers,), mesh_dim_names=("fsdp",))
    points = {p for p in model.parameters() if p.dim() == 0}
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=points & set(block.parameters()))
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=points)
    model.to(device)  # what FSDP was told to ignore
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums, which NCCL makes of a factor and gloo does not
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True)  # which parameters have a gradient may hang on the samples
    rank = mesh.get_local_rank()
    return Spread(model, [_shard(name, p, rank, workers, mesh) for name, p in model.named_parameters()], rank, workers)


def _shard(name: str, parameter: nn.Parameter, rank: int, workers: int, mesh: DeviceMesh | None) -> ParamShard:
    shape, first = tuple(parameter.shape), [0] * parameter.dim()
    if mesh is None or not shape:
        return ParamShard(name, parameter, shape, tuple(first), 1.0, None, ())
    first[0] = min(rank * -(-shape[0] // workers), shape[0])  # as torch.chunk divides: the last may be short or empty
    return ParamShard(name, parameter, shape, tuple(first), 1.0, mesh, (Shard(0),))
