"""How evenly the experts are used: a row a MoE layer, a column a step or several, coloured by MaxVio."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shoal.report.figures import Floats, column, mark_recoveries, recovery_marks
from shoal.report.history import History
from shoal.report.style import INK, LOSS, axes, figure

__all__ = ["balance_figure", "columns", "violations"]

PREFIX = "max_violation."
COLUMNS = 400
COLOURS = LinearSegmentedColormap.from_list("load", ["#f4f6f8", LOSS[0], INK])


def violations(history: History) -> Floats:
    """MaxVio, max(load) / mean(load) - 1, by layer and step: (layers, steps), NaN where unknown; no layers where the
    workload tells none."""
    found = {key.removeprefix(PREFIX) for step in history.steps for key in step if key.startswith(PREFIX)}
    layers = sorted(int(layer) for layer in found if layer.isdecimal())
    if not layers:
        return np.empty((0, len(history.steps)))
    return np.stack([column(history, f"{PREFIX}{layer}") for layer in layers])


def columns(values: Floats) -> tuple[Floats, int]:
    """Means over neighbouring steps, so that at most `COLUMNS` columns are left, and how many steps each stands for.
    values: (layers, steps). NaN do not count."""
    size = max(1, -(-values.shape[1] // COLUMNS))
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % size)), constant_values=np.nan)
    parts = padded.reshape(len(values), -1, size)
    known = ~np.isnan(parts)
    sums, counts = np.where(known, parts, 0.0).sum(axis=2), known.sum(axis=2)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), size


def balance_figure(history: History) -> Figure:
    """The heat map, layer 0 on top. The scale is that of square roots: a balanced run lies near 0.2 after a start that
    may reach 10."""
    values, size = columns(violations(history))
    layers = len(values)
    fig = figure(10.5, 1.5 + min(5.0, 0.22 * layers))
    (ax,) = axes(fig)
    known = values[~np.isnan(values)]
    top = max(0.2, float(known.max())) if known.size else 1.0
    first = float(history.steps[0]["step"]) + 0.5
    image = ax.imshow(
        values, aspect="auto", interpolation="nearest", cmap=COLOURS, norm=PowerNorm(0.5, vmin=0.0, vmax=top),
        extent=(first, first + values.shape[1] * size, layers - 0.5, -0.5),
    )  # fmt: skip
    ax.set_xlim(first, first + len(history.steps))
    ax.grid(visible=False)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=max(1, min(layers, 12))))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("MoE layer")
    ax.set_xlabel("committed steps")
    averaged = "" if size == 1 else f", means of {size} steps"
    ax.set_title(f"Load of the busiest expert over the mean, less one (MaxVio){averaged}", loc="left")
    bar = fig.colorbar(image, ax=ax, fraction=0.025, pad=0.01)
    bar.outline.set_visible(False)
    mark_recoveries(ax, recovery_marks(history)[0], [""] * len(history.kind("recovery")))
    return fig
