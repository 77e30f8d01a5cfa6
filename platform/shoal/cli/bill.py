"""What `shoal plan --model` prints: an estimate and its bill, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from shoal.cli.routed import at_quantile, routing_values

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from shoal.simulate.policies import Tried
    from shoal_workloads.estimate import Bill, Estimate
    from shoal_workloads.estimate.scaling import Scaled

__all__ = [
    "LEVELS",
    "Priced",
    "Trainable",
    "dollars",
    "estimate_lines",
    "estimate_values",
    "layout_of",
    "scaling_table",
    "trainable_table",
]

LEVELS: dict[str, bool | str] = {"none": False, "norms": True, "ffn": "ffn", "dispatch": "dispatch"}
"""Levels of recomputation, by the words of `--recompute`."""


@dataclass(frozen=True)
class Priced:
    """A policy with what the run costs by it, its spare nodes paid for: `dollars` on average, `least` of the seed with
    which it gets on best, `most` of that with which it does worst. A run that gets nowhere costs without end."""

    tried: Tried
    days: float
    dollars: float
    least: float
    most: float

    def times(self, share: float) -> Priced:
        """The same for so many times the tokens."""
        return Priced(self.tried, *(share * value for value in (self.days, self.dollars, self.least, self.most)))


@dataclass(frozen=True)
class Trainable:
    """How far a model could be trained; `why`: what keeps it from being."""

    model: str
    found: Estimate | None
    cost: Bill | None
    why: str

    @property
    def parameters(self) -> int:
        from shoal_workloads.params import count_parameters

        return 0 if self.found is None else count_parameters(self.found.config.model).total

    def values(self) -> dict[str, Any]:
        """For a program."""
        cost = self.cost
        return {
            "model": self.model,
            "parameters": self.parameters or None,
            "layout": None if self.found is None else layout_of(self.found),
            "tokens": None if cost is None else cost.tokens,
            "days": None if cost is None else cost.days,
            "dollars": None if cost is None else cost.dollars,
            "why": self.why or None,
        }


def trainable_table(rows: Sequence[Trainable]) -> Table:
    """A line for each model that could be."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="without failures", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for name in ("parameters", "tokens", "a parameter", "days", "dollars", "MFU"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in rows:
        if one.cost is not None and one.found is not None:
            size, tokens = one.parameters, one.cost.tokens
            figures = [in_short(size), in_short(tokens), in_short(tokens / size), f"{one.cost.days:.1f}"]
            table.add_row(one.model, *figures, dollars(one.cost.dollars), f"{one.found.mfu:.0%}")
    return table


def scaling_table(rows: Sequence[Scaled]) -> Table:
    """A line for each size, both ways to grow one under the other."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "seconds of exchange over seconds of computing: below 1 it can be hidden"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("way", no_wrap=True)
    for name in ("times", "experts", "a token", "nodes", "size", "flat", "hierarchical"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in rows:
        sizes = [f"{value:,}" for value in (one.times, one.experts, one.top_k, one.nodes)]
        table.add_row(one.way, *sizes, in_short(one.parameters), f"{one.flat:.2f}", f"{one.hierarchical:.2f}")
    return table


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


def estimate_values(
    found: Estimate, cost: Bill | None, policies: Sequence[Priced], reasons: Sequence[str]
) -> dict[str, Any]:
    """For a program; bytes, seconds, dollars. What hangs on a number of tokens is null without one."""
    from shoal_workloads.estimate import bill

    each = bill(found, 1e12, 0.0).gpu_hours_per_trillion_tokens
    parallel = found.config.parallel
    return {
        "fits": found.fits,
        "memory_peak_bytes": found.memory.total,
        "memory_parts": dict(found.memory.parts),
        "routing": routing_values(found),
        "step_seconds": found.seconds,
        "step_parts": dict(found.step),
        "step_phases": dict(found.phases),
        "tokens_per_second": found.tokens_per_second,
        "mfu": found.mfu,
        "gpu_hours_per_trillion_tokens": each,
        "gpu_hours": None if cost is None else cost.gpu_hours,
        "days": None if cost is None else cost.days,
        "dollars": None if cost is None else cost.dollars,
        "tokens": None if cost is None else cost.tokens,
        "dollars_with_failures": {one.tried.policy.name: finite(one.dollars) for one in policies} or None,
        "policies": [policy_values(one) for one in policies] or None,
        "layout": {
            "cells": found.cells, "workers_per_cell": found.mesh.workers, "pp": found.mesh.pp, "fsdp": found.mesh.fsdp,
            "ep": found.mesh.ep, "schedule": parallel.schedule if found.mesh.pp > 1 else None,
            "recompute": parallel.recompute, "waiting": parallel.waiting,
            "reshard_after_forward": parallel.reshard_after_forward, "micro_batches": found.micro_batches,
        },
        "reasons": list(reasons),
    }  # fmt: skip


def policy_values(one: Priced) -> dict[str, Any]:
    """A policy for a program; dollars of the whole run if it has a number of tokens, else of 10^12."""
    policy = one.tried.policy
    return {
        "name": policy.name, "spare_nodes": policy.spare_nodes, "elastic": policy.elastic, "spot": policy.spot,
        "checkpoint_every": one.tried.checkpoint, "trains": list(one.tried.trains), "ended": one.tried.ended,
        "days": finite(one.days), "dollars": finite(one.dollars),
        "dollars_least": finite(one.least), "dollars_most": finite(one.most),
    }  # fmt: skip


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if isfinite(value) else None


def estimate_lines(
    name: str, found: Estimate, cost: Bill, whole: bool, policies: Sequence[Priced]
) -> Iterator[RenderableType]:
    """The same for a terminal. `name`: of model or job; `whole`: the bill is of the run, not of 10^12 tokens."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    cluster = found.cluster
    yield f"{name} on {cluster.nodes}x{cluster.slots} {cluster.name}: {layout_of(found)}"
    fits = "fits" if found.fits else "does NOT fit"
    memory = f"{found.memory.total / 1e9:.1f} of {cluster.hardware.memory_gb:g} GB"
    yield f"memory: {fits}{at_quantile(found)}, {memory} of the worker that needs most ({found.memory.words()})"
    yield (
        f"step: {found.seconds:.2f} s for {found.tokens / 1e6:.1f}M tokens, {found.tokens_per_second:,.0f} tokens/s, "
        f"MFU {found.mfu:.1%}"
    )
    parts = Table("of a step", title_justify="left", box=SIMPLE_HEAD)
    parts.add_column("seconds", justify="right")
    parts.add_column("share", justify="right")
    for part, seconds in sorted(found.step.items(), key=lambda part: -part[1]):
        parts.add_row(part, f"{seconds:.3f}", f"{seconds / found.seconds:.1%}")
    yield parts
    yield f"{cost.gpu_hours_per_trillion_tokens:,.0f} GPU-hours for 10^12 tokens"
    if whole:
        yield f"{cost.tokens:.4g} tokens: {cost.days:.1f} days, {cost.gpu_hours:,.0f} GPU-hours, ${cost.dollars:,.0f}"
    if policies:
        yield failing_table(policies, whole)


def failing_table(policies: Sequence[Priced], whole: bool) -> Table:
    """Ways to live with failures, the cheapest first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    of = "the run" if whole else "10^12 tokens"
    title = f"{of} with failures, simulated {len(policies[0].tried.trains)} times"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("nodes", no_wrap=True)
    for name in ("trains", "save every", "days", "dollars", "from", "to"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in policies:
        ended = f" ({one.tried.ended} ended)" if one.tried.ended else ""
        steps = f"{one.tried.checkpoint} steps"
        money = map(dollars, (one.dollars, one.least, one.most))
        table.add_row(one.tried.policy.name + ended, f"{one.tried.mean:.2%}", steps, f"{one.days:.1f}", *money)
    return table


def in_short(value: float) -> str:
    """671B, 14.8T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e4)):
        if value >= size:
            return f"{value / (1e3 if unit == 'K' else size):.4g}{unit}"
    return f"{value:,.0f}"


def dollars(value: float) -> str:
    """$10,747, $574.7K, $5.747M."""
    if not isfinite(value):
        return "-"
    if value < 100_000:
        return f"${value:,.0f}"
    return f"${value / 1e3:.1f}K" if value < 999_950 else f"${value / 1e6:,.3f}M"
