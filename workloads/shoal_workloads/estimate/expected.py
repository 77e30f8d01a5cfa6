"""What a run's steps should take, for its record: the estimate of the layout that trains, on the device that it trains
on. Where no table knows the device, its memory alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal_core.errors import UserError
from shoal_core.workload import Crew
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.hardware import Hardware, entry_of
from shoal_workloads.estimate.step import Cluster, estimate, memory_over_step
from shoal_workloads.estimate.torchmodel import counted, memory_of, torch_estimate
from shoal_workloads.footprint import SPARE, footprint
from shoal_workloads.parallel.fits import settled
from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["expected", "torch_expected"]

OF_GPUS = ("context", "communicators", "spare")
"""Parts of the memory that are not so on a CPU: what is spared there is a share of the rest alone."""
MOMENTS = 200
"""Of a step, of which the memory is told, at most."""


def expected(config: PretrainConfig, samples: int, cells: int, crew: Crew) -> dict[str, Any]:
    """A step of so many samples: figures of docs/record.md under `predicted`.

    Raises:
        UserError: what is reckoned with is wrong, or there are no such cells.
    """
    batch = config.batch.model_copy(update={"global_batch": samples, "ramp": None})
    config = config.model_copy(update={"batch": batch})
    known, why = looked_up(crew)
    if known is None:
        parts = footprint(settled(config, crew.workers), crew.workers).parts
        return {"samples": samples, **memory_told([(0.0, parts)], config.device), "why": why}
    found = estimate(config, cluster_of(crew, cells, *known), crew.workers, cells)
    busy = cells * crew.workers
    return {
        "samples": samples,
        **memory_told(memory_over_step(found), config.device),
        "step_seconds": found.seconds,
        "step_parts": dict(found.step),
        "tokens_per_second": found.tokens_per_second,
        **({"mfu": found.mfu * found.cluster.workers / busy} if config.device == "cuda" else {}),
        **hardware_told(*known),
        "pipeline": None if found.pipeline is None else [
            [[str(span.step), span.start, span.end] for span in rank] for rank in found.pipeline.timeline.spans
        ],
        "why": why,
    }  # fmt: skip


def torch_expected(workload: TorchWorkload, cells: int, crew: Crew) -> dict[str, Any]:
    """The same of a user's own model.

    Raises:
        UserError: as `expected`, or its code cannot be reckoned (`counted`).
    """
    config = workload.config
    known, why = looked_up(crew)
    if known is None:
        parts = memory_of(workload, counted(workload), crew.workers)
        return {"samples": config.global_batch, **memory_told([(0.0, parts)], config.device), "why": why}
    found = torch_estimate(workload, cluster_of(crew, cells, *known), crew.workers, cells)
    return {
        "samples": found.samples,
        **memory_told([(0.0, found.memory)], config.device),
        "step_seconds": found.seconds,
        "step_parts": dict(found.step),
        **({} if found.count is None else {"tokens_per_second": found.tokens_per_second}),
        **hardware_told(*known),
        "why": why,
    }


def looked_up(crew: Crew) -> tuple[tuple[str, Hardware] | None, list[str]]:
    """The entry of the workers' device, and what there is to say if there is none."""
    try:
        known = entry_of(crew.device)
    except UserError as error:
        return None, [f"the time of a step is not reckoned: {error.problem}: {error.remedy}"]
    if known is None:
        return None, [f"the time of a step is not reckoned: no table knows {crew.device!r}: shoal plan --calibrate"]
    return known, []


def cluster_of(crew: Crew, cells: int, name: str, hardware: Hardware) -> Cluster:
    """The nodes that the workers are on, as far as they are theirs."""
    slots = max(crew.slots, -(-cells * crew.workers // crew.nodes))
    return Cluster(crew.nodes, slots, name, hardware)


def hardware_told(name: str, hardware: Hardware) -> dict[str, Any]:
    learned = hardware.learned
    return {"hardware": name, "learned": None if learned is None else {"step": learned.step, "memory": learned.memory}}


def memory_told(moments: Sequence[tuple[float, Mapping[str, int]]], device: str) -> dict[str, Any]:
    """The peak, its parts, and the parts over the step (`times`: of its end, where it is a pipeline's)."""
    held = [(time, dict(parts) if device == "cuda" else of_cpu(parts)) for time, parts in moments]
    peak = max((parts for _, parts in held), key=lambda parts: sum(parts.values()))
    end = held[-1][0] or 1.0
    shown = thinned(held)
    names = sorted({name for _, parts in shown for name in parts})
    over = {
        "times": [round(time / end, 5) for time, _ in shown],
        "parts": {name: [parts.get(name, 0) for _, parts in shown] for name in names},
    }
    return {"memory_peak_bytes": sum(peak.values()), "memory_parts": peak, "memory_over_step": over}


def of_cpu(parts: Mapping[str, int]) -> dict[str, int]:
    """What of a worker's memory there is on a CPU."""
    rest = {name: size for name, size in parts.items() if name not in OF_GPUS}
    return {**rest, "spare": int(SPARE * sum(rest.values()))}


def thinned(held: Sequence[tuple[float, dict[str, int]]]) -> list[tuple[float, dict[str, int]]]:
    """`MOMENTS` of them at most: of neighbours the one that takes most. The last, the commit's, stays."""
    *before, last = held
    each = -(-len(before) // (MOMENTS - 1)) or 1
    groups = [before[at : at + each] for at in range(0, len(before), each)]
    return [*(max(group, key=lambda one: sum(one[1].values())) for group in groups), last]
