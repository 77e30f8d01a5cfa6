"""`shoal simulate`: the controller's own decisions on a cluster that is not here, at real failure rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.pictures import check_picture
from shoal.simulate.settings import REGROUP

__all__ = ["simulate"]


def simulate(
    cluster: Annotated[str, typer.Option(help="Nodes x workers of a node.")] = "2048x8",
    workers_per_cell: Annotated[int, typer.Option(min=1, help="128: Llama 3 405B's 8-way TP x 16-way PP.")] = 128,
    days: Annotated[float, typer.Option(min=0.001, help="How long to simulate.")] = 54.0,
    spare_nodes: Annotated[int, typer.Option(min=0, help="Nodes that stand by.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the failures.")] = 0,
    rate: Annotated[float, typer.Option(min=0.0, help="Factor on Llama 3's failure rates.")] = 1.0,
    micro_batches: Annotated[int, typer.Option(min=1, help="A cell and step, at full strength.")] = 16,
    checkpoint: Annotated[int, typer.Option(min=1, help="Steps between two.")] = 500,
    step: Annotated[float, typer.Option(min=0.001, help="Seconds of a step at full strength.")] = 10.0,
    across: Annotated[float, typer.Option(min=0.0, help="Its part that crosses cells.")] = 0.5,
    closed: Annotated[float, typer.Option(min=0.0, help="Seconds until a death is heard of.")] = 0.2,
    silent: Annotated[float, typer.Option(min=0.0, help="The same where nothing closes: the watchdog's.")] = 31.0,
    regroup: Annotated[float, typer.Option(min=0.0, help="Seconds to build a generation's groups.")] = REGROUP,
    form: Annotated[float, typer.Option(min=0.0, help="Seconds to build a cell's world and model.")] = 15.0,
    copy: Annotated[float, typer.Option(min=0.0, help="Seconds to copy the state to a healed cell.")] = 20.0,
    restore: Annotated[float, typer.Option(min=0.0, help="Seconds to load a checkpoint.")] = 120.0,
    start: Annotated[float, typer.Option(min=0.0, help="Seconds to start a worker.")] = 60.0,
    notice: Annotated[float, typer.Option(min=0.0, help="Seconds between a notice and the node's end.")] = 120.0,
    measured: Annotated[
        Path | None, typer.Option(help="Take closed, regroup and form from this result of benchmarks/reshape.py.")
    ] = None,
    elastic: Annotated[
        bool, typer.Option("--elastic", help="Cells may take another shape, of half to twice their workers.")
    ] = False,
    rules: Annotated[
        bool,
        typer.Option(
            "--rules", help="Without spares: worker hours that train by reshaping, dropping cells and torchft's rule."
        ),
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Write live cells over time to this SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """How much of its time a run would train, at Llama 3's failure rates, and where the rest goes.

    Workers, clock and failures are simulated; the decisions are the controller's own code, and timed.
    """
    from rich.console import Console

    from shoal.simulate.measured import by_benchmark
    from shoal.simulate.result import draw, draw_rules, figures_of, render, render_rules, result
    from shoal.simulate.rules import compared
    from shoal.simulate.settings import Settings, Times, parse_cluster
    from shoal.simulate.simulation import Simulation

    check_picture("--plot", plot, (".svg",))
    nodes, slots = parse_cluster(cluster)
    times = Times(step, across, closed, silent, regroup, form, copy, restore, start, notice)
    if measured is not None:
        times = by_benchmark(times, measured, nodes * slots)
    settings = Settings(
        nodes, slots, workers_per_cell, days, spare_nodes, micro_batches, checkpoint, rate, seed, times, elastic
    )
    if rules:
        hours = compared(settings)
        figures = figures_of(settings, hours)
        print(json.dumps(figures, indent=2)) if as_json else Console().print(render_rules(figures))
        if plot is not None:
            draw_rules(settings, hours, plot)
        return
    simulation = Simulation(settings)
    simulation.run()
    found = result(simulation)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        Console().print(render(found))
    if plot is not None:
        draw(simulation, plot)
