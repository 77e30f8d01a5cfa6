"""`shoal plan job.yaml --cluster NODESxGPUSxKIND` of a `TorchWorkload`: whether it fits, how fast, what it costs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from shoal.cli.bill import dollars
from shoal.cli.estimate import Asked, paid, parse_gpus, unused
from shoal.printable import printable
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal.config import Job
    from shoal_workloads.estimate import Rent
    from shoal_workloads.estimate.torchmodel import TorchEstimate
    from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["of_torch_job"]


def of_torch_job(job: Job, workload: TorchWorkload, asked: Asked, *, as_json: bool) -> bool:
    """Print the estimate of a job. Returns whether it fits.

    Raises:
        UserError: something is asked for that is not known of such a job; or as `torch_estimate`.
    """
    from rich.console import Console

    from shoal_workloads.estimate import Rent
    from shoal_workloads.estimate.torchmodel import torch_estimate

    options: dict[str, object] = {
        "--failures": asked.rates, "--picture": asked.picture, "--tokens": asked.tokens, "--budget": asked.budget,
        "--days": asked.days, "--routing": asked.routing, "--like": asked.like,
    }  # fmt: skip
    if unknown := [name for name, value in options.items() if value is not None]:
        raise UserError(
            f"{unknown[0]}: not there yet for a model of one's own",
            "leave it out; the job's `steps` say how long it runs",
        )
    cluster = parse_gpus(asked.cluster, asked.hardware)
    found = torch_estimate(workload, cluster, job.workers_per_cell, job.cells)
    each, source = paid(asked, cluster)
    rent = Rent(job.steps * found.seconds, cluster.workers, each)
    reasons = ["products are reckoned at the rate of bf16, whatever their own; what only moves bytes by what is kept"]
    reasons += [*unused(cluster, found.cells * found.workers), *source]
    if not found.fits:
        more = found.peak / 1e9 - cluster.hardware.memory_gb
        reasons.insert(
            0, f"it needs {more:.1f} GB more than a {cluster.name} has: larger cells, or a smaller micro_batch"
        )
    values = values_of(found, rent, reasons)
    if as_json:
        print(json.dumps(values, indent=2))
        return found.fits
    console = Console(markup=False, highlight=False)
    memory = ", ".join(
        f"{name} {size / 1e9:.2f}" for name, size in sorted(found.memory.items(), key=lambda part: -part[1])
    )
    fits = "fits" if found.fits else "does NOT fit"
    console.print(f"memory: {fits}, {found.peak / 1e9:.2f} of {cluster.hardware.memory_gb:g} GB ({memory})")
    parts = ", ".join(
        f"{name} {seconds:.4f}" for name, seconds in sorted(found.step.items(), key=lambda part: -part[1])
    )
    console.print(
        f"step: {found.seconds:.4f} s for {found.samples:,} samples, {values['samples_per_second']:,.0f} samples/s, "
        f"MFU {found.mfu:.1%} ({parts})"
    )
    console.print(
        f"{job.steps:,} steps: {rent.days:.2f} days, {rent.gpu_hours:,.1f} GPU-hours, {dollars(rent.dollars)}"
    )
    for reason in reasons:
        console.print(f"- {printable(reason)}")
    return found.fits


def values_of(found: TorchEstimate, rent: Rent, reasons: list[str]) -> dict[str, Any]:
    """For a program, by the names of other estimates."""
    return {
        "fits": found.fits, "memory_peak_bytes": found.peak, "memory_parts": dict(found.memory),
        "step_seconds": found.seconds, "step_parts": dict(found.step),
        "samples_per_second": found.samples / found.seconds, "mfu": found.mfu,
        "gpu_hours": rent.gpu_hours, "days": rent.days, "dollars": rent.dollars,
        "layout": {"cells": found.cells, "workers_per_cell": found.workers, "micro_batches": found.micro_batches},
        "reasons": reasons,
    }  # fmt: skip
