"""What training a user's model takes: its own code runs once over a micro-batch without values, which counts the FLOPs
and what backward keeps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh
from shoal_workloads.estimate.commit import per_byte
from shoal_workloads.estimate.layer import MOVED
from shoal_workloads.estimate.learned import corrected_torch
from shoal_workloads.estimate.moved import FP32
from shoal_workloads.estimate.step import WAITING, Cluster, shared
from shoal_workloads.footprint import COMMUNICATORS, CONTEXT, SPARE
from shoal_workloads.torchmodel.building import built
from shoal_workloads.torchmodel.losses import loss_of
from shoal_workloads.torchmodel.optimizer import kept as kept_by
from shoal_workloads.torchmodel.spread import whole_blocks
from shoal_workloads.torchmodel.theirs import their_code
from shoal_workloads.torchmodel.trial import LARGEST
from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["Counted", "TorchEstimate", "counted", "memory_of", "torch_estimate"]


@dataclass(frozen=True)
class Counted:
    """Of one micro-batch of a worker: `flops` of the products, forward and backward; bytes `kept` between the two. Of
    the model: numbers of `parameters`, of those `trained`, of the largest of its blocks that FSDP gathers by itself,
    and of the `rest`, which is gathered with the whole; bytes of its `buffers`. `count`: what the mean of its loss
    divides by (tokens, samples); None: that hangs on values, and there were none."""

    flops: float
    kept: int
    parameters: int
    trained: int
    largest: int
    rest: int
    buffers: int
    count: float | None


@dataclass(frozen=True)
class TorchEstimate:
    """A step in `cells` of `workers`. `memory`: bytes of a worker, by part; `step`: seconds, by what takes them."""

    cluster: Cluster
    cells: int
    workers: int
    micro_batches: int
    samples: int
    flops: float
    memory: Mapping[str, int]
    step: Mapping[str, float]
    count: float | None
    """Of a sample, what the mean of the loss divides by, if it is known."""

    @property
    def mesh(self) -> Mesh:
        return Mesh(fsdp=self.workers)

    @property
    def parts(self) -> Mapping[str, int]:
        """The memory, by the name that other estimates have for it."""
        return self.memory

    @property
    def phases(self) -> Mapping[str, float]:
        """None: there is no pipeline."""
        return {}

    @property
    def layout(self) -> Mapping[str, Any]:
        """As an `Estimate`'s; what is not of such a job is null."""
        rest = dict.fromkeys(("schedule", "recompute", "waiting", "reshard_after_forward"))
        return {
            "cells": self.cells, "workers_per_cell": self.workers, "pp": 1, "fsdp": self.workers, "ep": 1, **rest,
            "micro_batches": self.micro_batches,
        }  # fmt: skip

    @property
    def tokens(self) -> float:
        """Of a step: what the mean of its loss divides by, or samples, where that is not known."""
        return self.samples * (self.count or 1.0)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def fits(self) -> bool:
        return self.peak <= self.cluster.hardware.memory_gb * 1e9

    @property
    def seconds(self) -> float:
        return sum(self.step.values())

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.memory.values())

    @property
    def mfu(self) -> float:
        """Share of bf16's peak, of all GPUs of the cluster, that goes into products."""
        return self.flops / (self.seconds * self.cluster.workers * self.cluster.hardware.tflops.bf16 * 1e12)


def counted(workload: TorchWorkload, *, values: bool | None = None) -> Counted:
    """Run `loss` and its backward pass over the first micro-batch: with `values`, or with tensors that have shapes
    alone; None: with values if the model is as small as one that is tried before a run. Without, a model may take
    another way (masks of attention that it would leave out).

    Raises:
        UserError: what the user wrote raised, or looks at values of which there are none.
    """
    if values is None:
        values = workload.blueprint.parameters <= LARGEST
    name, first = type(workload).__name__, workload.samples(0)[0]
    with their_code(f"{name}.dataset or {name}.collate"):
        batch = workload.items.batch(range(first, first + workload.micro_batch))
    fake, flops = FakeTensorMode(), FlopCounterMode(display=False)
    if not values:
        batch = tree_map_only(torch.Tensor, fake.from_tensor, batch)
    try:
        with nullcontext() if values else fake, their_code(f"{name}.loss"):
            model = built(workload, 0)
            kept = Kept(model)
            with flops, torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
                loss = loss_of(workload, model, batch, "cpu")
                size = kept.size
                loss.total.backward()
    except UserError as error:
        if not isinstance(error.__cause__, (DataDependentOutputException, DynamicOutputShapeException)):
            raise
        raise UserError(
            f"{name} looks at values, and cannot be reckoned without them ({error.problem})",
            "give the count of its loss as a tensor (no .item(), no branch on what a tensor holds)",
        ) from error
    blocks = whole_blocks(model, workload.blocks(model))
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    buffers = sum(one.numel() * one.element_size() for one in model.buffers())
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    largest, rest = max(sizes, default=0), parameters - sum(sizes)
    known = loss.count.constant if isinstance(loss.count, FakeTensor) else loss.count
    count = None if known is None else float(known)
    return Counted(float(flops.get_total_flops()), size, parameters, trained, largest, rest, buffers, count)


class Kept:
    """Bytes that autograd keeps for backward, each storage once, less parameters and buffers."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {storage(one) for one in (*model.parameters(), *model.buffers())}
        self._alive = dict[int, torch.UntypedStorage]()

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        key = storage(tensor)
        if key not in self._own:
            self._alive[key] = tensor.untyped_storage()
        return tensor

    @property
    def size(self) -> int:
        return sum(one.nbytes() for one in self._alive.values())


def storage(tensor: torch.Tensor) -> int:
    """What tells a storage from others, also where none has an address."""
    return int(tensor.untyped_storage()._cdata)


def torch_estimate(
    workload: TorchWorkload, cluster: Cluster, workers: int, cells: int | None, known: Counted | None = None
) -> TorchEstimate:
    """A step of a user's model in so many cells; None: as many as there is room for. `known`: what `counted` said of it
    before.

    Raises:
        UserError: there is no room for them, a batch cannot be cut for them, or `counted` cannot count.
    """
    found, config = known or counted(workload), workload.config
    samples = config.global_batch
    cells, most = shared(samples, config.micro_batch, cluster, workers, cells)
    flops = found.flops * samples / config.micro_batch
    memory = memory_of(workload, found, workers)
    step = step_of(workload, found, cluster, workers, cells, most, memory)
    each = None if found.count is None else found.count / config.micro_batch
    return corrected_torch(TorchEstimate(cluster, cells, workers, most, samples, flops, memory, step, each))


def memory_of(workload: TorchWorkload, found: Counted, workers: int) -> dict[str, int]:
    """Bytes of the worker that holds most, at its fullest: the largest block at work, all that is kept, and its
    gradients beside it."""
    several, blueprint = workers > 1, workload.blueprint
    trained = {name: rows(shape, workers) for name, (shape, _) in blueprint.trained.items()}
    mine = FP32 * sum(map(prod, trained.values()))
    frozen = FP32 * sum(prod(rows(shape, workers)) for shape, _ in blueprint.frozen.values())
    together = found.rest + 2 * found.largest  # the next block is gathered meanwhile
    # those of the block before are reduced meanwhile; of what no block has they grow until backward ends
    unreduced = 2 * found.largest + (found.trained if workload.config.reduce_once else found.rest)
    moments = 2 * mine
    if workload.own_optimizer is not None:
        state = kept_by(workload.own_optimizer, trained)
        moments = sum(prod(shape) * getattr(torch, dtype).itemsize for shape, dtype in state.values())
    parts = {
        "parameters": mine + frozen,
        "parameters, gathered": FP32 * together if several else 0,
        "buffers": found.buffers,
        "gradients": mine,
        "gradients, not reduced yet": FP32 * unreduced if several else 0,
        "optimizer": moments,
        "averages": mine if workload.config.ema_decay else 0,
        "activations": found.kept,
        "gradients, flat": mine,
        "context": CONTEXT,
        "communicators": COMMUNICATORS if several else 0,
    }
    return {**parts, "spare": int(SPARE * sum(parts.values()))}


def rows(shape: tuple[int, ...], workers: int) -> tuple[int, ...]:
    """Of a parameter what the first worker holds, none more: see `spread`."""
    return (ceil(shape[0] / workers), *shape[1:]) if shape else ()


def step_of(
    workload: TorchWorkload,
    found: Counted,
    cluster: Cluster,
    workers: int,
    cells: int,
    most: int,
    memory: Mapping[str, int],
) -> dict[str, float]:
    """Seconds by part. What is kept is written once and read once, and its gradients are."""
    hardware = cluster.hardware
    rate = hardware.tflops.bf16 * hardware.reached.bf16 * 1e12
    products = most * found.flops / rate
    moved_bytes = most * 4 * found.kept / (hardware.memory_tb_s * 1e12 * MOVED)
    step = {"products": products, "element-wise": moved_bytes}
    if workers > 1:  # blocks are gathered forward and backward, the rest once; behind what computes
        gathered = most * (2 * found.parameters - found.rest)
        reduced = (1 if workload.config.reduce_once else most) * found.trained
        traffic = FP32 * (gathered + reduced) * per_byte(cluster, workers)
        step["gather and reduce"] = max(0.0, traffic - products - moved_bytes)
    step["waiting"] = WAITING / (1 - WAITING) * sum(step.values())
    step["sum across cells"] = 2 * (cells - 1) / cells * memory["gradients"] / (hardware.network_gb_s * 1e9)
    # of gradients and parameters what is read and written, and of what the optimizer keeps
    updated = 4 * memory["gradients"] + 2 * memory["optimizer"]
    step["optimizer"] = updated / (hardware.memory_tb_s * 1e12 * MOVED)
    return step
