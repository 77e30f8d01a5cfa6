"""What `shoal plan` says of an estimate and its bill to people: lines and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from shoal.cli.bill import Failing, Priced, Trainable, dollars, layout_of, number
from shoal.cli.routed import at_quantile

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from shoal_workloads.estimate import Bill, Reckoned
    from shoal_workloads.estimate.scaling import Scaled

__all__ = ["estimate_lines", "scaling_table", "trainable_table"]


def estimate_lines(
    name: str, found: Reckoned, cost: Bill, whole: bool, failing: Failing | None
) -> Iterator[RenderableType]:
    """An estimate and its bill. `name`: of model or job; `whole`: the bill is of the run, not of 10^12 tokens."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    cluster = found.cluster
    yield f"{name} on {cluster.nodes}x{cluster.slots} {cluster.name}: {layout_of(found)}"
    fits = "fits" if found.fits else "does NOT fit"
    memory = f"{found.peak / 1e9:.1f} of {cluster.hardware.memory_gb:g} GB"
    parts = ", ".join(
        f"{part} {size / 1e9:.1f}"
        for part, size in sorted(found.parts.items(), key=lambda one: -one[1])
        if size > found.peak / 200
    )
    yield f"memory: {fits}{at_quantile(found)}, {memory} of the worker that needs most ({parts})"
    yield (
        f"step: {found.seconds:.4g} s for {in_short(found.tokens)} tokens, {found.tokens_per_second:,.0f} tokens/s, "
        f"MFU {found.mfu:.1%}"
    )
    table = Table("of a step", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for part, seconds in sorted(found.step.items(), key=lambda part: -part[1]):
        table.add_row(part, f"{seconds:.3g}" if seconds < 0.1 else f"{seconds:.3f}", f"{seconds / found.seconds:.1%}")
    yield table
    yield f"{cost.gpu_hours_per_trillion_tokens:,.0f} GPU-hours for 10^12 tokens"
    if whole:
        length = f"{cost.tokens:.4g} tokens, {cost.tokens / found.tokens:,.0f} steps"
        paid = f"${cost.dollars:,.0f}" if cost.dollars >= 100 else f"${cost.dollars:.2f}"
        yield f"{length}: {cost.days:.3g} days, {number(cost.gpu_hours, 'GPU-hours')}, {paid}"
    if failing is not None:
        yield policies_table(failing.policies, whole)
        if len(failing.cells) > 1:
            yield cells_table(failing.cells)
        yield intervals_table(failing)


def simple(title: str, first: str, *others: str) -> Table:
    """An empty table; what comes after its first column is numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name == "nodes" else "right", no_wrap=True)
    return table


def policies_table(policies: Sequence[Priced], whole: bool) -> Table:
    """Ways to live with failures, the cheapest first."""
    of = "the run" if whole else "10^12 tokens"
    title = f"{of} with failures, simulated {len(policies[0].tried.trains)} times"
    table = simple(title, "nodes", "trains", "save every", "days", "dollars", "from", "to")
    for one in policies:
        ended = f" ({one.tried.ended} ended)" if one.tried.ended else ""
        table.add_row(one.tried.policy.name + ended, *priced_words(one))
    return table


def cells_table(cells: Sequence[Priced]) -> Table:
    """The same GPUs cut into cells of other sizes, each by its cheapest policy."""
    table = simple("cells of other sizes", "cells", "nodes", "step", "trains", "save every", "days", "dollars")
    for one in cells:
        name, mesh = f"{one.found.cells} of", one.found.mesh
        axes = [f"{axis} {size}" for axis, size in (("pp", mesh.pp), ("fsdp", mesh.fsdp), ("ep", mesh.ep)) if size > 1]
        first = f"{name} {' x '.join(axes) or '1 worker'}"
        table.add_row(first, one.tried.policy.name, f"{one.found.seconds:.4g} s", *priced_words(one)[:4])
    return table


def priced_words(one: Priced) -> list[str]:
    """The columns that both tables have."""
    money = map(dollars, (one.dollars, one.least, one.most))
    return [f"{one.tried.mean:.2%}", f"{one.tried.checkpoint} steps", f"{one.days:.1f}", *money]


def intervals_table(failing: Failing) -> Table:
    """How often to save, of the cheapest."""
    best = failing.cells[0]
    title = f"how often to save: {best.tried.policy.name}, {best.found.cells} x {best.found.mesh.workers} workers"
    table = simple(title, "save every", "simulated", "by Young's formula")
    for one in failing.intervals:
        table.add_row(f"{one.every} steps", dollars(one.dollars), dollars(one.reckoned))
    return table


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


def in_short(value: float) -> str:
    """671B, 14.8T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e4)):
        if value >= size:
            return f"{value / (1e3 if unit == 'K' else size):.4g}{unit}"
    return f"{value:,.0f}"
