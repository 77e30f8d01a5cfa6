"""What messages take where that was measured (`Calibration.messages`): between processes of one machine, whose cores
compute and carry, so that nothing hides behind anything. Seconds."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.hardware import Hardware, Messages
from shoal_workloads.footprint import Footprint
from shoal_workloads.parallel.schedule import Schedule
from shoal_workloads.parallel.schedule.actions import Action

__all__ = ["drifted", "fsdp", "holders", "lines_of", "sends", "units", "waiting"]


def lines_of(hardware: Hardware) -> Messages | None:
    """None where nobody measured."""
    return None if hardware.calibration is None else hardware.calibration.messages


def units(config: PretrainConfig, mesh: Mesh) -> int:
    """What FSDP gathers at once: see `parallel.layout`."""
    model = config.model
    experts = model.n_moe + model.mtp_depth if mesh.fsdp > 1 else 0
    return model.n_layers + model.mtp_depth + experts + 1


def fsdp(
    lines: Messages, config: PretrainConfig, mesh: Mesh, gathered: float, reduced: float, micro_batches: int
) -> float:
    """`gathered`, `reduced`: bytes of a micro-batch and of a reduction, of which a worker has its share already."""
    parallel = config.parallel
    count, others = units(config, mesh), (mesh.workers - 1) / mesh.workers
    times = count + (count - 1) * parallel.reshard_after_forward  # the root is gathered once
    often = 1 if parallel.reduce_once is True else micro_batches
    gather = times * lines.gather.fixed + lines.gather.byte * gathered * others
    reduce = count * lines.reduce.fixed + lines.reduce.byte * reduced * others
    return gather * micro_batches + reduce * often


def waiting(lines: Messages, config: PretrainConfig, mesh: Mesh, computed: float, micro_batches: int) -> float:
    """Of a step without a pipeline, in which a worker computes for so many seconds: at every unit that is gathered or
    reduced, and wherever rows travel, there and back, forward and backward."""
    model, parallel, count = config.model, config.parallel, units(config, mesh)
    gathers = count + (count - 1) * parallel.reshard_after_forward
    rows = 4 * (model.n_moe + model.mtp_depth) if mesh.ep > 1 else 0
    reduces = count * (1 if parallel.reduce_once is True else micro_batches)
    return drifted(lines, (gathers + rows) * micro_batches + reduces, computed)


def drifted(lines: Messages, meetings: int, computed: float) -> float:
    """What workers wait for each other who meet so often in as many seconds."""
    return lines.waiting * sqrt(meetings * computed)


def holders(lines: Messages, mesh: Mesh, schedule: Schedule, memory: Sequence[Footprint]) -> float:
    """Of a pipeline's step: gradients to who holds the masters, and parameters from there; what one holds alone is
    copied likewise."""

    def one(of: Footprint) -> float:
        whole, own = (of.parts[name] for name in ("gradients", "master parameters"))
        taken = max(0, whole - own)
        copies = lines.held.seconds(max(0.0, whole - taken * each / (each - 1)))
        if not taken:
            return copies
        return copies + lines.holders_reduce.seconds(taken) + lines.holders_gather.seconds(taken)

    each = max(2, mesh.per_stage * len(schedule.holders(0)))
    return max(map(one, memory))


def sends(schedule: Schedule, action: Action) -> int:
    """Whether what the action makes goes to another rank (0 or 1)."""
    after = action.stage + 1 if action.kind == "F" else action.stage - 1
    if action.kind == "W" or not 0 <= after < schedule.stages:
        return 0
    here, there = (schedule.rank_of(stage, action.micro_batch) for stage in (action.stage, after))
    return int(here != there)
