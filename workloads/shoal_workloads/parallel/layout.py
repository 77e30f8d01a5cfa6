"""Spreads a model over the workers of a cell, and knows where every local tensor belongs in the whole.

Two axes share the W workers of a cell: `ep` workers split the experts between them, and W/ep such groups split every
expert once more (FSDP). Everything that is no expert is sharded by FSDP2 over all W. Shapes of parameters: vectors
(D,), matrices (O, I), stacked experts (E, O, I); FSDP cuts the first dimension, of experts the second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from shoal_core.mesh import Mesh
from shoal_workloads.config import ParallelConfig
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.parallel.dispatch import Exchange
from shoal_workloads.parallel.exchange import make_exchange
from shoal_workloads.parallel.shards import ParamShard
from shoal_workloads.precision.products import Products

__all__ = ["Layout", "layout_of", "let_go", "shard_model"]


@dataclass(frozen=True)
class Layout:
    """How the workers of a cell share a model: `mesh` in numbers; `everybody`, one axis over all of them, none in a
    cell of one; `experts`, (efsdp, ep), where both are larger than one; `exchange` between those that share experts."""

    mesh: Mesh = field(default_factory=Mesh)
    everybody: DeviceMesh | None = None
    experts: DeviceMesh | None = None
    exchange: Exchange | None = None


def layout_of(device: str, parallel: ParallelConfig) -> Layout:
    """The layout of the current default process group (a world of one where there is none). Collective."""
    workers = dist.get_world_size() if dist.is_initialized() else 1
    if workers == 1:
        return Layout()
    mesh = Mesh.of({"ep": parallel.ep}, workers)
    everybody = init_device_mesh(device, (workers,), mesh_dim_names=("dp",))
    if mesh.ep == 1:
        return Layout(mesh, everybody)
    experts = None
    if mesh.fsdp > 1:
        experts = init_device_mesh(device, (mesh.fsdp, mesh.ep), mesh_dim_names=("efsdp", "ep"))
    group = everybody.get_group() if experts is None else experts.get_group("ep")
    return Layout(mesh, everybody, experts, make_exchange(group, kind=parallel.dispatch, per_node=parallel.ep_node))


def shard_model(
    config: ModelConfig,
    layout: Layout,
    *,
    device: str,
    dtype: torch.dtype = torch.float32,
    products: Products | None = None,
    reshard_after_forward: bool = False,
) -> tuple[DeepSeekV3, list[ParamShard]]:
    """Build the model with uninitialised values, only this worker's share in memory, and its shards in a fixed order.

    `dtype`: of activations; `products`: the format of the products; parameters and gradients at rest are float32."""
    with torch.device("meta"):
        model = DeepSeekV3(config, layout.exchange, dtype, products)
    if layout.everybody is not None:
        # Router and norm weights are gathered in `dtype` as well; the router computes in float32 from there.
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        _fully_shard(model, layout, policy, reshard_after_forward)
    model.to_empty(device=device)
    for moe in model.moe_layers():
        moe.router.bias.zero_()
    return model, [_shard(name, p, layout) for name, p in model.named_parameters()]


def let_go(model: nn.Module) -> None:
    """Have every parameter gathered anew before it is computed with."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _fully_shard(model: DeepSeekV3, layout: Layout, policy: MixedPrecisionPolicy, reshard_after_forward: bool) -> None:
    whole = layout.everybody
    unsharded: set[nn.Parameter] = set()  # experts that expert parallelism alone spreads: FSDP has nothing to do
    for moe in model.moe_layers():
        if layout.mesh.fsdp == 1:
            unsharded.update(moe.experts.parameters())
        else:
            mesh = whole if layout.experts is None else layout.experts["efsdp"]
            # Experts are split along their width: their number is already split by `ep`.
            fully_shard(
                moe.experts,
                mesh=mesh,
                mp_policy=policy,
                reshard_after_forward=reshard_after_forward,
                shard_placement_fn=lambda p: Shard(1),
            )
    for block in (*model.layers, *model.mtp):
        fully_shard(
            block,
            mesh=whole,
            mp_policy=policy,
            reshard_after_forward=reshard_after_forward,
            ignored_params=unsharded & set(block.parameters()),
        )
    fully_shard(model, mesh=whole, mp_policy=policy, reshard_after_forward=False, ignored_params=unsharded)
    _prefetch(model)


def _prefetch(model: DeepSeekV3) -> None:
    """Have the next layer's parameters gathered while a layer computes. By itself FSDP asks for them once that is
    issued, which a layer of experts is not before the host knows its counts. Backward needs no word: there FSDP asks
    for the layer before first thing."""
    for layer, following in pairwise(model.layers):
        parts: list[FSDPModule] = [part for part in following.modules() if isinstance(part, FSDPModule)]
        cast(FSDPModule, layer).set_modules_to_forward_prefetch(parts)


def _shard(name: str, parameter: nn.Parameter, layout: Layout) -> ParamShard:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    shape, first = list(parameter.shape), [0] * parameter.dim()
    mesh, everybody, experts = layout.mesh, layout.everybody, layout.experts
    if everybody is None:
        return ParamShard(name, parameter, tuple(shape), tuple(first), 1.0, None, ())
    rank = everybody.get_local_rank()
    if ".experts." not in name:
        rows = -(-shape[0] // mesh.workers)  # as FSDP and torch.chunk divide: the last shards may be short or empty
        first[0] = min(rank * rows, shape[0])
        return ParamShard(name, parameter, tuple(shape), tuple(first), float(mesh.workers), everybody, (Shard(0),))
    if mesh.ep == 1:
        first[1] = rank * local.shape[1]
        return ParamShard(name, parameter, tuple(shape), tuple(first), float(mesh.workers), everybody, (Shard(1),))
    shape[0] *= mesh.ep
    if experts is None:
        first[0] = rank * local.shape[0]
        return ParamShard(name, parameter, tuple(shape), tuple(first), 1.0, everybody, (Shard(0),))
    first[0] = experts.get_local_rank("ep") * local.shape[0]
    first[1] = experts.get_local_rank("efsdp") * local.shape[1]
    placements = (Shard(1), Shard(0))
    return ParamShard(name, parameter, tuple(shape), tuple(first), float(mesh.fsdp), experts, placements)
