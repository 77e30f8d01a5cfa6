"""The pictures of the report. Long runs are drawn by the means of at most a thousand bins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from shoal.report.history import History
from shoal.report.style import INK, LOSS, MUTED, TROUBLE, axes, figure

__all__ = ["Floats", "column", "loss_figure", "mark_recoveries", "optimizer_figure", "recovery_marks", "speed_panel"]

BINS = 1000
Floats = NDArray[np.float64]


def column(history: History, key: str) -> Floats:
    """One figure of every step, NaN where it is not known: (steps,)."""
    return np.array([np.nan if step.get(key) is None else step[key] for step in history.steps], dtype=np.float64)


def thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Means of neighbours, so that no more than `BINS` points are left; NaN do not count."""
    size = -(-len(x) // BINS)
    if size <= 1:
        return x, y
    pad = -len(x) % size
    parts = [np.pad(values, (0, pad), constant_values=np.nan).reshape(-1, size) for values in (x, y)]
    counts = [np.maximum(1, np.count_nonzero(~np.isnan(part), axis=1)) for part in parts]
    means = [np.nansum(part, axis=1) / count for part, count in zip(parts, counts, strict=True)]
    means[1][np.isnan(parts[1]).all(axis=1)] = np.nan
    return means[0], means[1]


def label_end(ax: Axes, x: Floats, y: Floats, text: str, colour: str, above: bool) -> None:
    """Write a line's name at its last point, a little above or below it, instead of a legend."""
    known = np.flatnonzero(~np.isnan(y))
    if known.size:
        last = known[-1]
        ax.annotate(
            text, (x[last], y[last]), xytext=(6, 6 if above else -6), textcoords="offset points", va="center",
            color=colour, fontsize=10,
        )  # fmt: skip


def mark_recoveries(ax: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
    """A thin red line at each place; its name on top."""
    for place, label in zip(places, labels, strict=True):
        ax.axvline(place, color=TROUBLE, linewidth=0.9, alpha=0.7, zorder=1)
        if label:
            ax.annotate(
                label, (place, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
                va="top", color=TROUBLE, fontsize=9,
            )  # fmt: skip


def recovery_marks(history: History) -> tuple[list[float], list[str]]:
    """Committed steps at which recoveries began, and the nodes that died; no names when there are many."""
    events = [event for event in history.kind("recovery")]
    begun = [event["time"] - (event.get("full_strength") or event.get("next_commit") or 0.0) for event in events]
    names = [" ".join(event.get("nodes") or []) or str(event.get("rung")) for event in events]
    return [float(history.committed(time)) for time in begun], names if len(names) <= 8 else [""] * len(names)


def loss_figure(history: History) -> Figure:
    """Main and MTP loss by step, with what they should stay below, the recoveries, and a held-out figure."""
    figures = {
        name: [event for event in history.kind("evaluation") if event.get(name) is not None]
        for name in ("bpb", "heldout_loss")
    }
    heldout = "bpb" if figures["bpb"] else "heldout_loss"
    evaluations = figures[heldout]
    fig = figure(10.5, 3.9)
    panels = axes(fig, 1, 2, widths=(3.2, 1)) if len(evaluations) > 1 else axes(fig)
    ax = panels[0]
    x = column(history, "step") + 1
    for key, name, colour, width in (("mtp_loss", "MTP", LOSS[1], 1.2), ("lm_loss", "next token", LOSS[0], 1.9)):
        points, values = thin(x, column(history, key))
        ax.plot(points, values, color=colour, linewidth=width)
        label_end(ax, points, values, name, colour, above=key == "mtp_loss")
    if history.entropy is not None:
        ax.axhline(history.entropy, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ax.annotate(
            "entropy of token frequencies", (1.0, history.entropy), xycoords=("axes fraction", "data"),
            xytext=(-4, 3), textcoords="offset points", ha="right", color=MUTED, fontsize=9,
        )  # fmt: skip
    mark_recoveries(ax, *recovery_marks(history))
    ax.set_title("Loss, nats a token", loc="left")
    ax.set_xlabel("committed steps")
    ax.margins(x=0.01)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(panels) > 1:
        found = [(float(event["step"]), float(event[heldout])) for event in evaluations]
        heldout_panel(panels[1], found, "text, bits a byte" if heldout == "bpb" else "loss")
    return fig


def heldout_panel(ax: Axes, points: Sequence[tuple[float, float]], what: str) -> None:
    """(committed steps, figure) of held-out samples. what: the figure, in words."""
    ax.plot(*zip(*points, strict=True), color=INK, marker="o", markersize=5)
    for index, place, side in ((0, 8, "left"), (-1, -15, "right")):
        ax.annotate(
            f"{points[index][1]:.3f}", points[index], xytext=(0, place), textcoords="offset points",
            ha=side, color=INK, fontsize=10,
        )  # fmt: skip
    ax.set_title(f"Held-out {what}", loc="left")
    ax.set_xlabel("committed steps")
    ax.margins(x=0.08, y=0.2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))


def speed_panel(ax: Axes, history: History) -> None:
    """Tokens a second of every step over time, by the workers' clock, and the mean over all time, recoveries
    included."""
    time = np.array([history.clock(step["time"]) for step in history.steps])
    own, arrived = column(history, "worker_seconds"), column(history, "seconds")
    rate = column(history, "tokens") / np.maximum(np.where(np.isnan(own), arrived, own), 1e-9)
    ax.plot(*thin(time, rate), color=LOSS[0], linewidth=1.3)
    mean = history.run["tokens_per_second"]
    if mean is not None:
        ax.axhline(mean, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    told = "" if mean is None else f" (dashed: {mean:,.0f} over all, recoveries included)"
    ax.set_title(f"Tokens a second{told}", loc="left")


def optimizer_figure(history: History) -> Figure:
    """Seconds, gradient norm and learning rate of every step."""
    fig = figure(10.5, 2.7)
    panels = axes(fig, 1, 3)
    x = column(history, "step") + 1
    figures = (("seconds", "Seconds a step"), ("grad_norm", "Gradient norm"), ("lr", "Learning rate"))
    for ax, (key, title) in zip(panels, figures, strict=True):
        points, values = thin(x, column(history, key))
        ax.plot(points, values, color=LOSS[0], linewidth=1.3)
        ax.set_title(title, loc="left")
        ax.set_xlabel("committed steps")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        ax.margins(x=0.02)
        ax.set_ylim(bottom=0)
        mark_recoveries(ax, recovery_marks(history)[0], [""] * len(history.kind("recovery")))
    panels[2].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return fig
