"""`shoal schedule`: a pipeline schedule as actions a rank, simulated and drawn."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.errors import UserError

if TYPE_CHECKING:
    from shoal_workloads.parallel.schedule import Schedule, Timeline

__all__ = ["schedule"]


def schedule(
    name: Annotated[str, typer.Argument(help="1f1b, interleaved, zb1p, zbv, dualpipev or dualpipe.")],
    pp: Annotated[int, typer.Option(help="Pipeline ranks.")],
    microbatches: Annotated[int, typer.Option(help="Of a step, both directions of dualpipe together.")],
    virtual: Annotated[int | None, typer.Option(help="Stages a rank, interleaved only [default: 2].")] = None,
    f: Annotated[float, typer.Option("--f", help="Time of a forward.")] = 1.0,
    b: Annotated[float, typer.Option("--b", help="Of a full backward.")] = 2.0,
    w: Annotated[float, typer.Option("--w", help="Of the part of it that makes the weights' gradients.")] = 1.0,
    fb: Annotated[float, typer.Option("--fb", help="Of a forward and a backward at once.")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print idle time, makespan, orders as JSON.")] = False,
    draw: Annotated[Path | None, typer.Option(help="Write a picture: a .svg or .png file.")] = None,
) -> None:
    """What each rank of a pipeline does when, how long it waits, and what it must keep; communication costs nothing."""
    from shoal_workloads.parallel.schedule import Costs, build, simulate

    for option, value in (("--f", f), ("--b", b), ("--w", w), ("--fb", fb)):
        if not 0 < value < float("inf"):
            raise UserError(f"{option}: {value:g} is no time", "a number above 0")
    if w >= b:
        raise UserError(f"--w: {w:g} is not less than the full backward, {b:g}", "--w below --b")
    if draw is not None and draw.suffix not in (".svg", ".png"):
        raise UserError(f"--draw: {draw} is neither .svg nor .png", "end the name with one of them")
    built = build(name, pp, microbatches, virtual)
    timeline = simulate(built, Costs(f, b, w, fb))
    if as_json:
        figures = {
            "idle": timeline.idle,
            "makespan": timeline.makespan,
            "peak_in_flight": timeline.peak_in_flight,
            "orders": [[str(step) for step in order] for order in built.orders],
        }
        print(json.dumps(figures))
    else:
        _print(built, timeline)
    if draw is not None:
        _write(timeline, draw)


def _print(built: Schedule, timeline: Timeline) -> None:
    """The grid in the terminal's width, and the figures."""
    from rich.console import Console
    from rich.text import Text

    from shoal_workloads.parallel.schedule.grid import KEY, grid

    console = Console(highlight=False)
    for line in grid(built, timeline, console.width):
        text = Text(line, no_wrap=True, overflow="ignore")
        for pattern, style in ((r"[Ff]\d+|F+", "yellow"), (r"[BbIi]\d+|[BI]+", "cyan"), (r"[Ww]\d+|W+", "green")):
            text.highlight_regex(pattern, style)
        console.print(text, soft_wrap=True)
    console.print(f"\n{KEY}\n", style="dim")
    copies = ", two copies of each stage" if built.name == "dualpipe" else ""
    console.print(
        f"{built.name}: {built.stages} stages on {built.ranks} ranks{copies}, {built.micro_batches} micro-batches"
    )
    console.print(f"makespan {timeline.makespan:g}, idle {timeline.idle_share:.1%}")
    console.print("idle a rank       " + " ".join(f"{idle:g}" for idle in timeline.idle))
    console.print("most in flight    " + " ".join(str(peak) for peak in timeline.peak_in_flight))


def _write(timeline: Timeline, path: Path) -> None:
    """The picture as a file, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from shoal.report.pipeline import Bar, pipeline_figure
    from shoal.report.style import svg

    figure = pipeline_figure([[Bar(str(s.step), s.start, s.end) for s in rank] for rank in timeline.spans])
    half = path.with_name(path.name + ".tmp")
    try:
        if path.suffix == ".svg":
            half.write_text(svg(figure, "A pipeline step"))
        else:
            figure.set_dpi(150)
            with half.open("wb") as out:
                FigureCanvasAgg(figure).print_png(out)
    except OSError as error:
        raise UserError(f"--draw: cannot write {path}: {error.strerror}", "another place") from error
    os.replace(half, path)
