"""The picture of cells and nodes over time: a bar a worker, coloured by its cell, with every event on it."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shoal.report.figures import speed_panel
from shoal.report.history import History, Stay
from shoal.report.lanes import lanes
from shoal.report.style import GRID, INK, MUTED, TROUBLE, axes, cell_colour, figure

__all__ = ["timeline_figure"]

TOP = -1.5
"""Place of the events over the lanes, of which the first is at 0."""
LETTER = 0.0085
"""Width of a letter, of that of the picture."""
MARKS = {
    "checkpoint": ("D", INK, "◆ checkpoint"),
    "evaluation": ("o", INK, "● evaluation"),
    "node_draining": ("v", TROUBLE, "▼ node announced to go"),
    "controller_back": ("^", TROUBLE, "▲ controller back"),
    "rolled_back": ("<", TROUBLE, "◀ rolled back"),
    "disagreement": ("X", TROUBLE, "✖ states differ"),
    "straggler": ("s", TROUBLE, "■ straggler"),
}


def timeline_figure(history: History) -> Figure:
    """Tokens a second over the lanes of all workers, on one axis of time."""
    rows = lanes(history.stays, {event.get("node") for event in history.kind("death", "node_lost")})
    height = max(1.6, 0.2 * len(rows) + 0.9)
    fig = figure(10.5, 2.1 + height)
    speed, places = axes(fig, 2, 1, heights=(1.9, height))
    speed_panel(speed, history)
    draw_lanes(places, history, rows)
    for ax in (speed, places):
        for event in history.kind("recovery"):
            end = history.clock(event["time"])
            start = history.clock(event["time"] - (event.get("full_strength") or event.get("next_commit") or 0.0))
            ax.axvspan(start, end, color=TROUBLE, alpha=0.16, linewidth=0, zorder=0)
        for seam in history.clock.seams:
            ax.axvline(seam, color=MUTED, linestyle=":", linewidth=1)
    places.set_xlabel("seconds of the run")
    places.set_xlim(left=0.0)
    return fig


def draw_lanes(ax: Axes, history: History, rows: list[tuple[str, list[Stay]]]) -> None:
    """One bar a worker, grouped by node; crosses where workers died."""
    deaths = {(event["actor"], event["time"]) for event in history.kind("death")}
    dead = {actor for actor, _ in deaths}
    position = 0.0
    middles: dict[str, list[float]] = {}
    previous: str | None = None
    for node, mine in rows:
        if previous is not None:
            position += 1.0 if node == previous else 1.7
        previous = node
        middles.setdefault(node, []).append(position)
        for stay in mine:
            start, end = history.clock(stay.start), history.clock(stay.end)
            ax.barh(position, end - start, left=start, height=0.78, color=cell_colour(stay.cell), linewidth=0)
            if stay.actor in dead and (stay.actor, stay.end) in deaths:
                ax.plot(end, position, marker="x", color=TROUBLE, markersize=7, markeredgewidth=2, zorder=4)
    above: dict[float, str] = {}
    marked = history.kind(*MARKS)
    if marked:
        above[TOP] = "\n".join(words for kind, (_, _, words) in MARKS.items() if history.kind(kind))
    for event in marked:
        marker, colour, _ = MARKS[event["kind"]]
        ax.plot(history.clock(event["time"]), TOP, marker=marker, color=colour, markersize=4.5, linestyle="none")
    if len(history.shapes) > 1:
        row = TOP - 1.5 if marked else TOP
        above[row] = "cells x workers"
        draw_shapes(ax, history, row)
    ax.set_ylim(max(position, 0.0) + 0.9, min(above, default=0.0) - 0.9)
    ax.set_yticks([*above, *(sum(spots) / len(spots) for spots in middles.values())])
    ax.set_yticklabels([*above.values(), *middles])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_title("Workers by node, coloured by cell", loc="left")


def draw_shapes(ax: Axes, history: History, row: float) -> None:
    """How many cells trained, and of how many workers each, stretch by stretch; a line where they became others. What
    has no room for its name has none."""
    ends = [*(shape.time for shape in history.shapes[1:]), history.end]
    whole = max(history.clock(history.end), 1e-9)
    for shape, until in zip(history.shapes, ends, strict=True):
        start, end = history.clock(shape.time), history.clock(until)
        ax.barh(row, end - start, left=start, height=0.95, color=GRID, edgecolor=MUTED, linewidth=0.5)
        name = f"{shape.cells} x {shape.workers}"
        if end - start > LETTER * (len(name) + 1) * whole:
            ax.text((start + end) / 2, row, name, ha="center", va="center", color=INK, fontsize=9)
        if shape.reshaped:
            ax.axvline(start, color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=3)
