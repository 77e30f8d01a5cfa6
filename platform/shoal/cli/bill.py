"""What `shoal plan --model` and `--validate` print: an estimate and its bill, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal_workloads.estimate import Bill, Estimate

__all__ = ["LEVELS", "Policy", "layout_of", "shown", "validated", "values"]

LEVELS: dict[str, bool | str] = {"none": False, "norms": True, "ffn": "ffn", "dispatch": "dispatch"}
"""Levels of recomputation, by the words of `--recompute`."""


@dataclass(frozen=True)
class Policy:
    """A way to live with failures: what it is called, the share of time in which the run gets on with it, and what the
    run costs then, its spare nodes paid for."""

    name: str
    trains: float
    cost: Bill


def layout_of(found: Estimate) -> str:
    """ "2 cells of pp 16 x fsdp 1 x ep 64, dualpipe, recompute dispatch, waiting 4"."""
    mesh, parallel = found.mesh, found.config.parallel
    level = next(name for name, value in LEVELS.items() if value is parallel.recompute or value == parallel.recompute)
    words = [
        f"{found.cells} {'cell' if found.cells == 1 else 'cells'} of pp {mesh.pp} x fsdp {mesh.fsdp} x ep {mesh.ep}"
    ]
    if mesh.pp > 1:
        words.append(parallel.schedule)
        words += [] if parallel.waiting is None else [f"waiting {parallel.waiting}"]
    elif parallel.reshard_after_forward:
        words.append("reshard_after_forward")
    return ", ".join([*words, f"recompute {level}"])


def number(value: float, unit: str) -> str:
    said = f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"
    return f"{said} {unit}".rstrip()


def values(found: Estimate, cost: Bill | None, policies: Sequence[Policy], reasons: Sequence[str]) -> dict[str, Any]:
    """For a program; bytes, seconds, dollars. What hangs on a number of tokens is null without one."""
    from shoal_workloads.estimate import bill

    each = bill(found, 1e12, 0.0).gpu_hours_per_trillion_tokens
    parallel = found.config.parallel
    return {
        "fits": found.fits,
        "memory_peak_bytes": found.memory.total,
        "memory_parts": dict(found.memory.parts),
        "step_seconds": found.seconds,
        "step_parts": dict(found.step),
        "step_phases": dict(found.phases),
        "tokens_per_second": found.tokens_per_second,
        "mfu": found.mfu,
        "gpu_hours_per_trillion_tokens": each,
        "gpu_hours": None if cost is None else cost.gpu_hours,
        "days": None if cost is None else cost.days,
        "dollars": None if cost is None else cost.dollars,
        "dollars_with_failures": {one.name: one.cost.dollars for one in policies} if policies and cost else None,
        "trains_with_failures": {one.name: one.trains for one in policies} or None,
        "layout": {
            "cells": found.cells, "workers_per_cell": found.mesh.workers, "pp": found.mesh.pp, "fsdp": found.mesh.fsdp,
            "ep": found.mesh.ep, "schedule": parallel.schedule if found.mesh.pp > 1 else None,
            "recompute": parallel.recompute, "waiting": parallel.waiting,
            "reshard_after_forward": parallel.reshard_after_forward, "micro_batches": found.micro_batches,
        },
        "reasons": list(reasons),
    }  # fmt: skip


def shown(model: str, found: Estimate, cost: Bill, whole: bool, policies: Sequence[Policy]) -> Iterator[RenderableType]:
    """The same for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    cluster = found.cluster
    yield f"{model} on {cluster.nodes}x{cluster.slots} {cluster.name}: {layout_of(found)}"
    fits = "fits" if found.fits else "does NOT fit"
    memory = f"{found.memory.total / 1e9:.1f} of {cluster.hardware.memory_gb:g} GB"
    yield f"memory: {fits}, {memory} of the worker that needs most ({found.memory.words()})"
    yield (
        f"step: {found.seconds:.2f} s for {found.tokens / 1e6:.1f}M tokens, {found.tokens_per_second:,.0f} tokens/s, "
        f"MFU {found.mfu:.1%}"
    )
    parts = Table("of a step", title_justify="left", box=SIMPLE_HEAD)
    parts.add_column("seconds", justify="right")
    parts.add_column("share", justify="right")
    for name, seconds in sorted(found.step.items(), key=lambda part: -part[1]):
        parts.add_row(name, f"{seconds:.3f}", f"{seconds / found.seconds:.1%}")
    yield parts
    yield f"{cost.gpu_hours_per_trillion_tokens:,.0f} GPU-hours for 10^12 tokens"
    if whole:
        yield f"{cost.tokens:.4g} tokens: {cost.days:.1f} days, {cost.gpu_hours:,.0f} GPU-hours, ${cost.dollars:,.0f}"
    if policies:
        table = Table("with Llama 3's failures", title_justify="left", box=SIMPLE_HEAD)
        for name in ("trains", "days", "dollars"):
            table.add_column(name, justify="right")
        for one in sorted(policies, key=lambda policy: policy.cost.dollars):
            table.add_row(one.name, f"{one.trains:.2%}", f"{one.cost.days:.1f}", f"${one.cost.dollars:,.0f}")
        yield table


def validated(as_json: bool) -> None:
    """Print how far the estimate is from published figures."""
    from rich.console import Console
    from rich.table import Table

    from shoal_workloads.estimate.published import compared

    figures = compared()
    if as_json:
        print(json.dumps([{**vars(one), "error": one.error} for one in figures], indent=2))
        return
    table = Table("figure", title="DeepSeek-V3 on 2,048 H800, from first principles", title_justify="left")
    for name in ("published", "ours", "error", "source"):
        table.add_column(name, justify="right")
    for one in figures:
        error = "fitted" if one.fitted else f"{one.error:+.1%}"
        table.add_row(one.name, number(one.published, one.unit), number(one.ours, one.unit), error, one.source)
    Console().print(table)
