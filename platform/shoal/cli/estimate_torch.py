"""`shoal plan job.yaml --cluster NODESxGPUSxKIND` of a `TorchWorkload`: whether it fits, how fast, what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.cli.estimate import Asked, parse_gpus, told
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal.config import Job
    from shoal_workloads.estimate.torchmodel import Counted, TorchEstimate
    from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["of_torch_job"]


def of_torch_job(job: Job, workload: TorchWorkload, asked: Asked, *, as_json: bool) -> bool:
    """Print the estimate of a job. Returns whether it fits.

    Raises:
        UserError: something is asked for that is not known of such a job; or as `torch_estimate`.
    """
    from shoal_workloads.estimate.torchmodel import counted, torch_estimate

    if asked.routing is not None or asked.like is not None:
        name = "--like" if asked.routing is None else "--routing"
        raise UserError(f"{name}: of a model of one's own it is not known how its experts are used", "leave it out")
    cluster = parse_gpus(asked.cluster, asked.hardware)
    known = counted(workload)
    found = torch_estimate(workload, cluster, job.workers_per_cell, job.cells, known)
    reasons = ["products are reckoned at the rate of bf16, whatever their own; what only moves bytes by what is kept"]
    if known.count is None:
        reasons.append("tokens are samples here: how many tokens its loss counts hangs on values, and it ran without")
    else:
        reasons.append(f"tokens are what the mean of its loss divides by: {found.count:g} a sample")
    others = [] if asked.rates is None else other_cells(workload, found, known)
    if not found.fits:
        reasons.insert(0, lacks(workload, found, known))
    return told(asked, [found, *others], reasons, job.steps * found.tokens, as_json=as_json)


def other_cells(workload: TorchWorkload, found: TorchEstimate, known: Counted) -> list[TorchEstimate]:
    """The same GPUs in cells of half to four times as many workers and less, as far as they fit and are near."""
    from shoal_workloads.estimate.search import HARDLY
    from shoal_workloads.estimate.torchmodel import torch_estimate

    others: list[TorchEstimate] = []
    for workers in sizes(found):
        try:
            one = torch_estimate(workload, found.cluster, workers, None, known)
        except UserError:  # a batch cannot be cut for them
            continue
        if workers != found.workers and one.fits and one.seconds < HARDLY * found.seconds:
            others.append(one)
    return others


def sizes(found: TorchEstimate) -> list[int]:
    """Workers of cells that the cluster has room for: those of the job's, halved and doubled."""
    smaller = [found.workers >> n for n in range(found.workers.bit_length()) if found.workers % (1 << n) == 0]
    larger = [found.workers << n for n in range(1, 32) if found.workers << n <= found.cluster.workers]
    return [*reversed(smaller), *larger]


def lacks(workload: TorchWorkload, found: TorchEstimate, known: Counted) -> str:
    """By how much it does not fit, and the smallest cell, and cluster, in which it does."""
    from shoal_workloads.estimate.torchmodel import memory_of

    cluster = found.cluster
    room = cluster.hardware.memory_gb * 1e9
    most = workload.config.global_batch // workload.config.micro_batch
    larger = (found.workers << n for n in range(1, most.bit_length()))
    enough = next((w for w in larger if w <= most and sum(memory_of(workload, known, w).values()) <= room), None)
    remedy = "in no larger cell it fits: a smaller micro_batch"
    if enough is not None:
        nodes = max(cluster.nodes, -(-enough // cluster.slots))
        remedy = f"it fits with workers_per_cell={enough}, on {nodes}x{cluster.slots}x{cluster.name}"
    more = (found.peak - room) / 1e9
    return f"it needs {more:.1f} GB more than the {cluster.hardware.memory_gb:g} of a {cluster.name}; {remedy}"
