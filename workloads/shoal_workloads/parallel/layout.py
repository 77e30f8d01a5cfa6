"""Spreads a model over the workers of a cell, and knows where every local tensor belongs in the whole.

Two axes share the W workers of a cell: `ep` workers split the experts between them, and W/ep such groups split every
expert once more (FSDP). Everything that is no expert is sharded by FSDP2 over all W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from shoal_workloads.config import ParallelConfig
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.parallel.dispatch import Exchange
from shoal_workloads.parallel.exchange import DispatchKind, make_exchange
from shoal_workloads.precision.products import Products

__all__ = ["Layout", "Slot", "layout_of", "shard_model"]


@dataclass(frozen=True)
class Slot:
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
        of one."""
        if self.mesh is None:
            return local
        stride = torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=torch.Size(self.shape), stride=stride
        )


@dataclass(frozen=True)
class Layout:
    """The axes of a cell. `mesh`: all workers, one axis; `experts`: (efsdp, ep), where both are larger than one;
    `dispatch`, `ep_node`: how rows get to experts (see `make_exchange`)."""

    workers: int
    ep: int
    mesh: DeviceMesh | None
    experts: DeviceMesh | None
    dispatch: DispatchKind = "flat"
    ep_node: int | None = None

    @property
    def ep_group(self) -> dist.ProcessGroup | None:
        """The workers this one shares its experts with."""
        if self.ep == 1 or self.mesh is None:
            return None
        return self.mesh.get_group() if self.experts is None else self.experts.get_group("ep")

    def exchange(self) -> Exchange | None:
        """Between them; one for all layers."""
        group = self.ep_group
        return None if group is None else make_exchange(group, kind=self.dispatch, per_node=self.ep_node)


def layout_of(device: str, parallel: ParallelConfig) -> Layout:
    """The axes of the current default process group (a world of one where there is none). Collective."""
    ep = parallel.ep
    workers = dist.get_world_size() if dist.is_initialized() else 1
    if workers == 1:
        return Layout(1, 1, None, None)
    mesh = init_device_mesh(device, (workers,), mesh_dim_names=("dp",))
    experts = None
    if 1 < ep < workers:
        experts = init_device_mesh(device, (workers // ep, ep), mesh_dim_names=("efsdp", "ep"))
    return Layout(workers, ep, mesh, experts, parallel.dispatch, parallel.ep_node)


def shard_model(
    config: ModelConfig,
    layout: Layout,
    *,
    device: str,
    dtype: torch.dtype = torch.float32,
    products: Products | None = None,
    reshard_after_forward: bool = False,
) -> tuple[DeepSeekV3, list[Slot]]:
    """Build the model with uninitialised values, only this worker's share in memory, and its slots in a fixed order.

    `dtype`: of activations; `products`: the format of the products; parameters and gradients at rest are float32."""
    with torch.device("meta"):
        model = DeepSeekV3(config, layout.exchange(), dtype, products)
    if layout.mesh is not None:
        # Router and norm weights are gathered in `dtype` as well; the router computes in float32 from there.
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        _fully_shard(model, layout, policy, reshard_after_forward)
    model.to_empty(device=device)
    for moe in model.moe_layers():
        moe.router.bias.zero_()
    return model, [_slot(name, p, layout) for name, p in model.named_parameters()]


def _fully_shard(model: DeepSeekV3, layout: Layout, policy: MixedPrecisionPolicy, reshard_after_forward: bool) -> None:
    whole = layout.mesh
    unsharded: set[nn.Parameter] = set()  # experts that expert parallelism alone spreads: FSDP has nothing to do
    for moe in model.moe_layers():
        if layout.ep == layout.workers:
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


def _slot(name: str, parameter: nn.Parameter, layout: Layout) -> Slot:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    shape, first = list(parameter.shape), [0] * parameter.dim()
    if layout.mesh is None:
        return Slot(name, parameter, tuple(shape), tuple(first), 1.0, None, ())
    if ".experts." not in name:
        rows = -(-shape[0] // layout.workers)  # as FSDP and torch.chunk divide: the last shards may be short or empty
        first[0] = min(layout.mesh.get_local_rank() * rows, shape[0])
        return Slot(name, parameter, tuple(shape), tuple(first), float(layout.workers), layout.mesh, (Shard(0),))
    if layout.ep == 1:
        first[1] = layout.mesh.get_local_rank() * local.shape[1]
        return Slot(name, parameter, tuple(shape), tuple(first), float(layout.workers), layout.mesh, (Shard(1),))
    shape[0] *= layout.ep
    if layout.experts is None:
        first[0] = layout.mesh.get_local_rank() * local.shape[0]
        return Slot(name, parameter, tuple(shape), tuple(first), 1.0, layout.mesh, (Shard(0),))
    first[0] = layout.experts.get_local_rank("ep") * local.shape[0]
    first[1] = layout.experts.get_local_rank("efsdp") * local.shape[1]
    scale = float(layout.workers // layout.ep)
    return Slot(name, parameter, tuple(shape), tuple(first), scale, layout.experts, (Shard(1), Shard(0)))
