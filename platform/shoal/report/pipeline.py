"""The picture of a pipeline step: who worked on which micro-batch when, planned beside measured."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from shoal.report.style import CELLS, INK, axes, figure

__all__ = ["COLOURS", "NAMES", "Bar", "Lanes", "draw_lanes", "pipeline_figure"]

COLOURS = {"F": "#e0952f", "B": CELLS[0], "I": "#6fa8d6", "W": CELLS[1]}
NAMES = {"F": "forward", "B": "backward", "I": "gradient of the input", "W": "gradient of the weights"}
IDLE = "#f1f4f6"
WIDTH = 10.5  # inches
ACTION = re.compile(r"([FBIW])(\d+)\.(\d+)")


class Bar(NamedTuple):
    """A step of one rank: `F0.3`, kind, stage and micro-batch; `F0.3&B3.1` for two at once."""

    step: str
    start: float
    end: float


Lanes = Sequence[Sequence[Bar]]  # by rank


def pipeline_figure(
    planned: Lanes, measured: Lanes | None = None, unit: str = "", predicted: Lanes | None = None
) -> Figure:
    """A lane a rank, its steps coloured by kind and numbered by micro-batch where there is room; paler is the second
    stage of a rank or the second direction. All share the axis of time, in `unit`. `predicted`: as the run began."""
    named = (("Predicted", predicted), ("Planned", planned), ("Measured", measured))
    panels = [(title, lanes) for title, lanes in named if lanes is not None]
    height = 0.27 * len(planned) + 0.75
    fig = figure(WIDTH, height * len(panels) + 0.35)
    span = max(_end(lanes) - _begin(lanes) for _, lanes in panels)
    for ax, (title, lanes) in zip(axes(fig, len(panels)), panels, strict=True):
        draw_lanes(ax, lanes, span)
        ax.set_title(
            f"{title}: {_end(lanes) - _begin(lanes):.4g} {unit}".rstrip() + f", idle {_idle(lanes):.1%}", loc="left"
        )
    ax.set_xlabel(unit or "time")
    kinds = [k for k in COLOURS if any(k in bar.step for _, lanes in panels for lane in lanes for bar in lane)]
    fig.legend(
        handles=[Patch(color=COLOURS[kind], label=NAMES[kind]) for kind in kinds],
        loc="upper right", ncols=len(kinds), fontsize=9, handlelength=1.0, labelcolor=INK, frameon=False,
    )  # fmt: skip
    return fig


def _begin(lanes: Lanes) -> float:
    return min(bar.start for lane in lanes for bar in lane)


def _end(lanes: Lanes) -> float:
    return max(bar.end for lane in lanes for bar in lane)


def _idle(lanes: Lanes) -> float:
    """The part of all ranks' time, from the first start to the last end, in which nothing ran."""
    busy = sum(bar.end - bar.start for lane in lanes for bar in lane)
    return 1.0 - busy / (len(lanes) * (_end(lanes) - _begin(lanes)))


def draw_lanes(ax: Axes, lanes: Lanes, span: float | None = None) -> None:
    """All lanes of one panel; time starts at 0, and the axis ends at `span`, or with them."""
    begin, length = _begin(lanes), _end(lanes) - _begin(lanes)
    span = span or length
    found = [ACTION.findall(bar.step) for lane in lanes for bar in lane]
    stages = 1 + max(int(stage) for actions in found for _, stage, _ in actions)
    room = (WIDTH - 1.2) * 72 / span  # points a unit of time
    for rank, lane in enumerate(lanes):
        ax.broken_barh([(0.0, length)], (rank - 0.4, 0.8), facecolors=IDLE, linewidth=0)
        bars: dict[tuple[str, bool, float, float], list[tuple[float, float]]] = defaultdict(list)
        for bar in lane:
            actions = ACTION.findall(bar.step)
            high = 0.8 / len(actions)
            for place, (kind, stage, micro_batch) in enumerate(actions):
                pale = int(stage) >= len(lanes) if stages > len(lanes) else int(stage) != rank
                low = rank - 0.4 + place * high
                bars[kind, pale, low, high].append((bar.start - begin, bar.end - bar.start))
                points = 4.6 if len(actions) > 1 else 6.5
                if (bar.end - bar.start) * room > 0.75 * points * len(micro_batch):
                    ax.text(
                        (bar.start + bar.end) / 2 - begin, low + high / 2, micro_batch,
                        ha="center", va="center_baseline", fontsize=points, color=INK if pale else "white",
                    )  # fmt: skip
        for (kind, pale, low, high), places in bars.items():
            colour = _paler(COLOURS[kind]) if pale else COLOURS[kind]
            ax.broken_barh(places, (low, high), facecolors=colour, edgecolor="white", linewidth=0.4)
    ax.set_ylim(len(lanes) - 0.45, -0.55)
    ax.set_yticks(range(len(lanes)), [f"rank {rank}" for rank in range(len(lanes))])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    ax.set_xlim(0.0, span)


def _paler(colour: str) -> tuple[float, float, float]:
    """Half way to white."""
    red, green, blue = to_rgb(colour)
    return (1 + red) / 2, (1 + green) / 2, (1 + blue) / 2
