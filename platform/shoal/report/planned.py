"""The pictures of `shoal plan --picture`: memory over a step, the pipeline, and what failures cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shoal.report.pipeline import Lanes, draw_lanes
from shoal.report.style import CELLS, INK, LOSS, MUTED, TROUBLE, axes, figure

__all__ = ["Cost", "Ratio", "Saved", "memory_figure", "plan_figure", "scaling_figure"]

WIDTH = 10.5
GROUPS = {
    "parameters": ("parameters", "parameters in FP8"),
    "optimizer": ("master parameters", "moments", "averages"),
    "gradients": ("gradients", "gradients of a block", "gradients, not reduced yet"),
    "activations": ("activations: ",),
    "gradients of weights that wait": ("activations: weights' gradients that wait",),
    "at work": ("a layer at work", "rows under way", "logits", "loss", "pipeline buffers"),
    "commit": ("gradients, flat", "bucket"),
    "outside": ("context", "communicators", "buffers", "spare"),
}
"""Parts of the memory by the colour that they share; one that ends in a blank stands for all that begin so."""
OTHER = "outside"
GB = 1e9


class Cost(NamedTuple):
    """Dollars of a policy: on average, and of the best and the worst seed."""

    policy: str
    mean: float
    least: float
    most: float


class Saved(NamedTuple):
    """Dollars if a checkpoint is saved `every` so many steps: simulated, and by Young's formula."""

    every: int
    simulated: float
    reckoned: float


class Ratio(NamedTuple):
    """Exchange beside computing, where a layer's experts are shared by so many nodes."""

    way: str
    nodes: int
    flat: float
    hierarchical: float


def scaling_figure(rows: Sequence[Ratio]) -> Figure:
    """A panel for each way to grow; below the line the exchange can be hidden."""
    ways = list(dict.fromkeys(one.way for one in rows))
    fig = figure(WIDTH, 2.8)
    for ax, way in zip(axes(fig, columns=len(ways)), ways, strict=True):
        found = [one for one in rows if one.way == way]
        nodes = [one.nodes for one in found]
        ax.plot(nodes, [one.flat for one in found], "o-", color=LOSS[1], label="flat")
        ax.plot(nodes, [one.hierarchical for one in found], "o-", color=LOSS[0], label="hierarchical")
        ax.axhline(1.0, color=TROUBLE, linewidth=1.0)
        ax.set_xscale("log", base=2)
        ax.set_xticks(nodes, [str(count) for count in nodes])
        ax.set_ylim(0, 1.1 * max(1.0, *(one.flat for one in rows)))
        ax.set_xlabel("nodes that share a layer's experts")
        ax.set_title(f"Exchange / computing, {way}", loc="left")
        ax.legend(loc="upper left", fontsize=9, labelcolor=INK, frameon=False)
    return fig


def group_of(part: str) -> str:
    """The group that a part of the memory is drawn in."""
    exact = [name for name, parts in GROUPS.items() if part in parts]
    near = [name for name, parts in GROUPS.items() if any(one.endswith(" ") and part.startswith(one) for one in parts)]
    return (exact or near or [OTHER])[0]


def plan_figure(
    memory: Sequence[tuple[float, Mapping[str, int]]],
    capacity: float,
    lanes: Lanes | None,
    costs: Sequence[Cost],
    saved: Sequence[Saved] = (),
) -> Figure:
    """Panels one over the other. `memory`: bytes by part from each time on, the commit last; `capacity`: bytes of a
    GPU; `lanes`: of the pipeline's ranks, in seconds; `costs`: what there is of policies, the cheapest first."""
    heights = [2.4, *([0.2 * len(lanes) + 0.5] if lanes else []), *([0.28 * len(costs) + 0.5] if costs else [])]
    fig = figure(WIDTH, sum(heights) + 0.7)
    panels = iter(fig.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
    draw_memory(axes(next(panels))[0], memory, capacity)
    if lanes:
        (ax,) = axes(next(panels))
        draw_lanes(ax, lanes)
        ax.set_title("A step of the pipeline", loc="left")
        ax.set_xlabel("seconds")
    if costs:
        draw_costs(axes(next(panels))[0], costs)
    return fig


def memory_figure(memory: Sequence[tuple[float, Mapping[str, int]]], measured: int | None) -> Figure:
    """Of a run: as predicted, with the peak that was measured (bytes) as a line."""
    fig = figure(WIDTH, 2.9)
    draw_memory(axes(fig)[0], memory, measured, "measured: ")
    return fig


def draw_memory(
    ax: Axes, memory: Sequence[tuple[float, Mapping[str, int]]], line: float | None, called: str = ""
) -> None:
    """What lies on top of what, in the order of `GROUPS`; what changes least lies lowest. `line`: bytes at which one is
    drawn, with what they are called."""
    largest = max(sum(parts.values()) for _, parts in memory)
    unit, word = (GB, "GB") if max(largest, line or 0) >= GB else (GB / 1e3, "MB")
    end = 1.04 * memory[-1][0] or 1.0
    times = [*(time for time, _ in memory), end]
    grouped = [dict.fromkeys(GROUPS, 0.0) for _ in memory]
    for found, (_, parts) in zip(grouped, memory, strict=True):
        for part, size in parts.items():
            found[group_of(part)] += size / unit
    names = [name for name in GROUPS if any(found[name] for found in grouped)]
    rows = [[*(found[name] for found in grouped), grouped[-1][name]] for name in names]
    colours = dict(zip(GROUPS, CELLS, strict=True))
    ax.stackplot(times, rows, labels=names, colors=[colours[name] for name in names], step="post", linewidth=0)
    if line is not None:
        ax.axhline(line / unit, color=TROUBLE, linewidth=1.0)
        shown = f"{called}{line / unit:.4g} {word}"
        ax.text(end, line / unit, shown, color=TROUBLE, ha="right", va="bottom", fontsize=9)
    ax.set_xlim(0, end)
    ax.set_ylim(0, 1.12 * max(largest, line or 0) / unit)
    ax.set_ylabel(word)
    over = "over a step" if len(memory) > 1 else "when it needs most"
    ax.set_title(f"Memory of the worker that needs most, {over}: {largest / unit:.1f} {word}", loc="left")
    ax.set_xlabel("seconds")
    if len(memory) == 1:
        ax.set_xticks([])
        ax.set_xlabel("")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, labelcolor=INK, reverse=True, frameon=False)


def draw_costs(ax: Axes, costs: Sequence[Cost]) -> None:
    """A point a policy, with a line from its best seed to its worst."""
    for place, one in enumerate(costs):
        ax.plot([one.least / 1e6, one.most / 1e6], [place, place], color=MUTED, linewidth=2.5)
        ax.plot(one.mean / 1e6, place, "o", color=CELLS[0], markersize=5)
    ax.set_yticks(range(len(costs)), [one.policy for one in costs])
    ax.set_ylim(len(costs) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("million dollars; the line is from the best seed to the worst")
    ax.set_title("What failures make of the cost", loc="left")
