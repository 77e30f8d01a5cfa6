"""The look of the pictures: one palette, thin lines, no boxes, text that the browser draws."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from shoal_core.errors import UserError
from shoal_core.files import replace_file

__all__ = [
    "CELLS",
    "GRID",
    "INK",
    "LOSS",
    "MUTED",
    "PHASES",
    "SPARE",
    "TROUBLE",
    "axes",
    "cell_colour",
    "draw",
    "figure",
    "svg",
]

INK = "#24323f"
MUTED = "#8a97a3"
GRID = "#e7ecf0"
TROUBLE = "#c8453b"
SPARE = "#d5dce2"
LOSS = ("#2f6f9f", "#e0952f")
CELLS = ("#2f6f9f", "#3d9a83", "#8c6bb1", "#c98a2b", "#5b8c3a", "#b0577a", "#4f7fc4", "#8a6d4b")
PHASES = {
    "notice": "#c8453b",
    "pause": "#e0952f",
    "form": "#3d9a83",
    "fill": "#2f6f9f",
    "detect": "#c8453b",
    "decide": "#e0952f",
    "place": "#d8bd4c",
    "join": "#3d9a83",
    "state": "#2f6f9f",
    "first_step": "#8c6bb1",
}

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,  # names of nodes are no formulas
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


def cell_colour(cell: str | int | None) -> str:
    """The colour of a cell everywhere in the report; grey for spares."""
    if cell is None:
        return SPARE
    return CELLS[int(cell) % len(CELLS)] if str(cell).isdigit() else CELLS[-1]


def figure(width: float, height: float) -> Figure:
    """An empty figure in this style; inches."""
    with rc_context(RC):
        return Figure(figsize=(width, height), layout="constrained")


def axes(
    fig: Figure | SubFigure,
    rows: int = 1,
    columns: int = 1,
    heights: tuple[float, ...] | None = None,
    widths: tuple[float, ...] | None = None,
) -> list[Axes]:
    """A grid of axes in this style, row by row; rows share the horizontal axis of their column."""
    with rc_context(RC):
        grid = fig.subplots(rows, columns, sharex="col", squeeze=False, height_ratios=heights, width_ratios=widths)
    return list(grid.flat)


def svg(fig: Figure, name: str) -> str:
    """The figure as an `<svg>` element that scales with the page; `name`, unique in the page, says what it shows."""
    buffer = io.StringIO()
    for text in fig.findobj(Text):
        text.set_parse_math(False)
    with rc_context({**RC, "svg.hashsalt": name}):
        FigureCanvasSVG(fig).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    page = buffer.getvalue()
    head, rest = page[page.index("<svg") :].split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{name}">{rest}'


def draw(fig: Figure, name: str, path: Path) -> None:
    """Write the figure to `path`, as SVG or PNG by its ending, whole or not at all.

    Raises:
        UserError: another ending, or it cannot be written.
    """
    image: str | bytes
    if path.suffix == ".svg":
        image = svg(fig, name)
    elif path.suffix == ".png":
        fig.set_dpi(150)
        drawn = io.BytesIO()
        FigureCanvasAgg(fig).print_png(drawn)
        image = drawn.getvalue()
    else:
        raise UserError(f"{path} is neither .svg nor .png", "end the picture's name in one of the two")
    try:
        replace_file(path, image)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "name another place") from error
