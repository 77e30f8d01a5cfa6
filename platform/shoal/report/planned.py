"""The pictures of `shoal plan --picture`: memory over a step, the pipeline, and what failures cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from shoal.report.pipeline import COLOURS, NAMES, Lanes, draw_lanes
from shoal.report.style import CELLS, INK, LOSS, MUTED, TROUBLE, axes, figure

__all__ = ["Cost", "Ratio", "Saved", "Traffic", "memory_figure", "plan_figure", "scaling_figure"]

WIDTH = 10.5
GROUPS = {
    "parameters": ("parameters", "parameters in FP8", "parameters, gathered", "buffers"),
    "optimizer": ("master parameters", "moments", "optimizer", "averages"),
    "gradients": ("gradients", "gradients of a block", "gradients, not reduced yet"),
    "activations": ("activations: ", "activations"),
    "gradients of weights that wait": ("activations: weights' gradients that wait",),
    "at work": ("a layer at work", "rows under way", "logits", "loss", "pipeline buffers"),
    "commit": ("gradients, flat", "bucket"),
    "outside": ("context", "communicators", "spare"),
}
"""Parts of the memory by the colour that they share; one that ends in a blank stands for all that begin so."""
OTHER = "outside"
HIDDEN = "#24323f"
NEAR, RANKS = 12, 4
"""Bars of a lane, and lanes, that are drawn larger where there are many."""
AFTER = ("#8c6bb1", "#5b8c3a", "#8a97a3")
"""Colours of what comes after the pipeline."""
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


class Traffic(NamedTuple):
    """Of each bar of each lane, seconds of exchange `hidden` behind what is computed, and `exposed` at its end; and
    what comes `after` the pipeline, by name, in seconds."""

    hidden: Sequence[Sequence[float]]
    exposed: Sequence[Sequence[float]]
    after: Mapping[str, float]


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
    traffic: Traffic | None = None,
) -> Figure:
    """Panels one over the other. `memory`: bytes by part from each time on, the commit last; `capacity`: bytes of a
    GPU; `lanes`: of the pipeline's ranks, in seconds, with their `traffic`; `costs`: what there is of policies, the
    cheapest first; `saved`: of intervals."""
    heights = [2.6, *([max(0.22 * len(lanes) + 0.9, 2.6)] if lanes else [])]
    near = middle(lanes, traffic) if lanes and traffic is not None else None
    if near is not None:
        heights.append(0.34 * len(near[0]) + 0.9)
    if costs:
        heights.append(max(0.28 * len(costs), 1.5) + 0.7)
    fig = figure(WIDTH, sum(heights) + 0.3)
    panels = iter(fig.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
    draw_memory(axes(next(panels))[0], memory, capacity)
    if lanes:
        draw_pipeline(
            next(panels), lanes, traffic or Traffic((), (), {}), "A step of the pipeline; paler: a rank's other stage"
        )
    if near is not None:
        draw_pipeline(next(panels), *near, "From the middle of it", legend=False)
    if costs:
        both = axes(next(panels), columns=2 if saved else 1, widths=(3.0, 2.0) if saved else None)
        draw_costs(both[0], costs)
        if saved:
            draw_intervals(both[1], saved)
    return fig


def middle(lanes: Lanes, traffic: Traffic) -> tuple[Lanes, Traffic] | None:
    """A few bars of the first ranks, from the middle of the step; None: all of them can be told apart as they are."""
    bars = max(map(len, lanes))
    if bars < 4 * NEAR:
        return None
    begin = min(bar.start for lane in lanes for bar in lane)
    end = max(bar.end for lane in lanes for bar in lane)
    first = (begin + end) / 2
    last = first + NEAR * (end - begin) / bars
    within = [[place for place, bar in enumerate(lane) if first <= bar.start and bar.end <= last] for lane in lanes]
    few = [rank for rank, found in enumerate(within) if found][:RANKS]

    def of(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
        return [[rows[rank][place] for place in within[rank]] for rank in few]

    return (of(lanes), Traffic(of(traffic.hidden), of(traffic.exposed), {})) if few else None


def draw_pipeline(fig: SubFigure, lanes: Lanes, traffic: Traffic, title: str, *, legend: bool = True) -> None:
    """A lane a rank; a strip at the foot of a bar is the exchange that it hides, red at its end what it does not."""
    (ax,) = axes(fig)
    begin = min(bar.start for lane in lanes for bar in lane)
    end = max(bar.end for lane in lanes for bar in lane) - begin
    whole = end + sum(traffic.after.values())
    draw_lanes(ax, lanes, whole)
    for rank, (lane, hidden, exposed) in enumerate(zip(lanes, traffic.hidden, traffic.exposed, strict=False)):
        behind = [(bar.start - begin, seconds) for bar, seconds in zip(lane, hidden, strict=True)]
        open_ = [(bar.end - seconds - begin, seconds) for bar, seconds in zip(lane, exposed, strict=True)]
        ax.broken_barh(behind, (rank + 0.24, 0.16), facecolors=HIDDEN, linewidth=0)
        ax.broken_barh(open_, (rank - 0.4, 0.8), facecolors=TROUBLE, linewidth=0)
    for seconds, colour in zip(traffic.after.values(), AFTER, strict=False):
        ax.broken_barh([(end, seconds)], (-0.4, len(lanes) - 0.2), facecolors=colour, linewidth=0)
        end += seconds
    kinds = [kind for kind in COLOURS if any(kind in bar.step for lane in lanes for bar in lane)]
    handles = [Patch(color=COLOURS[kind], label=NAMES[kind]) for kind in kinds]
    handles += [Patch(color=HIDDEN, label="exchange, hidden")] if any(map(any, traffic.hidden)) else []
    handles += [Patch(color=TROUBLE, label="exchange, exposed")] if any(map(any, traffic.exposed)) else []
    handles += [Patch(color=colour, label=name) for name, colour in zip(traffic.after, AFTER, strict=False)]
    if legend:
        ax.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, handlelength=1.0, labelcolor=INK,
            frameon=False,
        )  # fmt: skip
    ax.set_title(title, loc="left")
    ax.set_xlabel("seconds")


def draw_intervals(ax: Axes, saved: Sequence[Saved]) -> None:
    """What a run costs more than with the best interval, against steps between two checkpoints."""
    every, least = [one.every for one in saved], min(one.simulated for one in saved)
    simulated, reckoned = (
        [100 * (value / least - 1) for value in values]
        for values in ([one.simulated for one in saved], [one.reckoned for one in saved])
    )
    ax.plot(every, reckoned, "--", color=LOSS[1], label="by Young's formula")
    ax.plot(every, simulated, "o-", color=LOSS[0], markersize=4, label="simulated")
    ax.set_xscale("log", base=2)
    ax.set_xticks(every, [str(steps) for steps in every])
    ax.minorticks_off()
    ax.set_ylim(min(0.0, *reckoned) - 0.02, max(0.5, *simulated, *reckoned) * 1.25)
    ax.set_xlabel("steps between two checkpoints")
    ax.set_title("How often to save: % over the least", loc="left")
    ax.legend(loc="upper center", fontsize=9, labelcolor=INK, frameon=False, ncols=2)


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
