"""`shoal schedule`: a pipeline schedule as actions a rank, simulated and drawn."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.pictures import check_picture
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal.report.pipeline import Lanes
    from shoal_workloads.parallel.schedule import Costs, Schedule, Timeline

__all__ = ["schedule"]


def schedule(
    name: Annotated[str, typer.Argument(help="1f1b, interleaved, zb1p, zbv, dualpipev or dualpipe.")],
    pp: Annotated[int, typer.Option(help="Pipeline ranks.")],
    microbatches: Annotated[int, typer.Option(help="Of a step, both directions of dualpipe together.")],
    virtual: Annotated[int | None, typer.Option(help="Stages a rank, of interleaved only; by default 2.")] = None,
    f: Annotated[float, typer.Option("--f", help="Time of a forward.")] = 1.0,
    b: Annotated[float, typer.Option("--b", help="Of a full backward.")] = 2.0,
    w: Annotated[float, typer.Option("--w", help="Of the part of it that makes the weights' gradients.")] = 1.0,
    fb: Annotated[float, typer.Option("--fb", help="Of a forward and a backward at once.")] = 3.0,
    run: Annotated[
        str | None, typer.Option(help="Take the times of this run's last measured step, and draw that beside it.")
    ] = None,
    storage: Annotated[str, typer.Option(envvar="SHOAL_STORAGE", help="Where the runs lie.")] = "runs",
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
    check_picture("--draw", draw)
    built, costs, measured = build(name, pp, microbatches, virtual), Costs(f, b, w, fb), None
    if run is not None:
        measured = _measured(run, storage, pp)
        costs = _times(measured)
    timeline = simulate(built, costs)
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
        _write(timeline, measured, draw)


def _measured(run: str, storage: str, pp: int) -> Lanes:
    """The last measured step in a run's journal."""
    from shoal.record.finding import find_run
    from shoal.record.read import events
    from shoal.report.pipeline import Bar

    path = find_run(run, storage)
    found = [event["measured"] for event in events(path) if event["kind"] == "pipeline_step"]
    if not found:
        raise UserError(f"--run: {path} has no measured pipeline step", "a run with workload.parallel.pp above 1")
    if len(found[-1]) != pp:
        raise UserError(f"--pp: {path} has {len(found[-1])} pipeline ranks, not {pp}", f"--pp {len(found[-1])}")
    return [[Bar(*bar) for bar in lane] for lane in found[-1]]


def _times(lanes: Lanes) -> Costs:
    """Mean times of what a step was made of. A backward that is never split gives half its time to each part, a pair
    that never happens takes the time of its two actions."""
    from shoal_workloads.parallel.schedule import Costs

    found: dict[str, list[float]] = {}
    for bar in chain.from_iterable(lanes):
        found.setdefault("pair" if "&" in bar.step else bar.step[0], []).append(bar.end - bar.start)
    means = {kind: fmean(times) for kind, times in found.items()}
    backward = means["I"] + means["W"] if "W" in means else means["B"]
    return Costs(means["F"], backward, means.get("W", backward / 2), means.get("pair", means["F"] + backward))


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


def _write(timeline: Timeline, measured: Lanes | None, path: Path) -> None:
    """The picture as a file."""
    from shoal.report.pipeline import Bar, pipeline_figure
    from shoal.report.style import draw

    planned = [[Bar(str(span.step), span.start, span.end) for span in rank] for rank in timeline.spans]
    draw(pipeline_figure(planned, measured, "" if measured is None else "s"), "A pipeline step", path)
