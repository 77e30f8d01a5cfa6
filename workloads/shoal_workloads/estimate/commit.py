"""How long it takes to end a step: gradients summed up and reduced to who holds the masters, the optimizer, parameters
gathered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate import messages
from shoal_workloads.estimate.layer import MOVED
from shoal_workloads.estimate.moved import BF16, FP32
from shoal_workloads.footprint import Footprint
from shoal_workloads.parallel.schedule import Schedule
from shoal_workloads.parallel.schedule.balance import stage_layers

if TYPE_CHECKING:
    from shoal_workloads.estimate.step import Cluster

__all__ = ["committed", "per_byte"]


def committed(
    config: PretrainConfig,
    cluster: Cluster,
    mesh: Mesh,
    cells: int,
    memory: Sequence[Footprint],
    schedule: Schedule | None,
) -> dict[str, float]:
    """The sum across cells, and the optimizer: of the rank that holds most. It reads gradients for their norm and
    again, reads and writes masters and moments, and writes parameters, in FP8 their codes as well; gradients are set
    to zero."""
    hardware = cluster.hardware
    shard = max(one.parts["master parameters"] for one in memory)
    moments = max(one.parts["moments"] for one in memory)
    summed = 2 * (cells - 1) / cells * shard
    lines = messages.lines_of(hardware)
    if hardware.calibration is not None and hardware.calibration.update:
        updated = hardware.calibration.update * shard / FP32
    else:
        passes = {"parameters": 1, "parameters in FP8": 3, "gradients": 1}
        held = max(sum(times * one.parts.get(part, 0) for part, times in passes.items()) for one in memory)
        updated = (4 * shard + 2 * moments + held) / (hardware.memory_tb_s * 1e12 * MOVED)
    if lines:
        found = {"sum across cells": lines.sum.seconds(summed) if cells > 1 else 0.0, "optimizer": updated}
        if schedule is not None:
            found["gather and reduce"] = messages.holders(lines, mesh, schedule, memory)
        return found
    found = {"sum across cells": summed / (hardware.network_gb_s * 1e9), "optimizer": updated}
    if schedule is not None:
        found["gather and reduce"] = max(reduced(config, cluster, mesh, schedule, one) for one in memory)
    return found


def reduced(config: PretrainConfig, cluster: Cluster, mesh: Mesh, schedule: Schedule, memory: Footprint) -> float:
    """Seconds in which a rank of a pipeline reduces gradients, float32, to who holds the masters, and gathers
    parameters, once a step. Those of experts are shared by few, who sit in other nodes, so that each uses its own link;
    all others' by the whole stage, for which a node's links carry them together."""
    model, stages = config.model, schedule.stages_of(memory.place)
    ranges = stage_layers(model, schedule.stages, config.data.seq_len)
    layers = sum(i >= model.n_dense for stage in stages for i in ranges[stage])
    layers += model.mtp_depth if schedule.stages - 1 in stages else 0
    held = memory.parts["gradients"] / FP32
    experts = min(held, 3.0 * model.d_model * model.d_expert * (model.n_experts // mesh.ep) * layers)
    holders = mesh.per_stage * len(schedule.holders(stages[0]))
    few = holders // mesh.ep
    link = 1 / (cluster.hardware.network_gb_s * 1e9) if mesh.ep >= cluster.slots else per_byte(cluster, few)
    each = FP32 + (FP32 if config.precision == "fp32" else BF16)
    return each * (
        experts * (1 - 1 / few) * link + (held - experts) * (1 - 1 / holders) * per_byte(cluster, mesh.per_stage)
    )


def per_byte(cluster: Cluster, workers: int) -> float:
    """Seconds a byte of what `workers` side by side gather or reduce: all of a node's links carry it in, and it goes
    on inside."""
    hardware = cluster.hardware
    inside = 1 / (hardware.nvlink_gb_s * 1e9)
    if workers <= cluster.slots:
        return inside
    return max(inside, 1 / (cluster.slots * hardware.network_gb_s * 1e9))
