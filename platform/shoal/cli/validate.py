"""What `shoal plan --validate` prints: how far estimates are from published figures, and from what runs took."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from shoal.cli.bill import number
from shoal.cli.learned import measured, runs_table, runs_values

if TYPE_CHECKING:
    from rich.table import Table

    from shoal_workloads.estimate.published import Figure

__all__ = ["interrupted", "validated"]

LLAMA = "The Llama 3 Herd of Models, arXiv 2407.21783, section 3.3.4; here seed 0"
GPUS, DAYS = 16_384, 54.0
STEP, SAVED, SPARES = 6.2, 100, 32
"""Of its steps seconds (16 x 10^6 tokens at 400 TFLOPS a GPU), how many lie between two checkpoints, and nodes that
stand by: the last two are assumed."""


def validated(as_json: bool, runs: Sequence[str] = (), storage: str | None = None) -> None:
    """Print how far the estimate is from published figures; and what was predicted of `runs`, or of all in `storage`,
    from what they took, if one of both is said.

    Raises:
        UserError: as `measured`.
    """
    from rich.console import Console

    from shoal_workloads.estimate.published import SOURCES, compared

    own = measured(runs, storage) if runs or storage else []
    with Console(stderr=True).status("Llama 3's 54 days, simulated"):
        figures = [*compared(), *interrupted()]
    if as_json:
        published = [{**vars(one), "error": one.error} for one in figures]
        print(json.dumps({"published": published, "runs": runs_values(own)} if own else published, indent=2))
        return
    console = Console(markup=False, highlight=False)
    for of, some in groupby(figures, lambda one: one.of):
        console.print(table_of(of, list(some)))
    for short, source in {**SOURCES, "L": LLAMA}.items():
        console.print(f"{short}: {source}")
    if own:
        console.print(runs_table(own))


def interrupted() -> Iterator[Figure]:
    """Llama 3's pre-training in simulation, as it was run: all GPUs are one cell, which goes back to a checkpoint
    whenever one of them is lost. How often is drawn by its own rates, so that the counts only test the drawing."""
    from shoal.simulate.settings import Settings, Times
    from shoal.simulate.simulation import Simulation
    from shoal_workloads.estimate.published import Figure

    settings = Settings(
        nodes=GPUS // 8,
        slots=8,
        workers=GPUS,
        days=DAYS,
        spare_nodes=SPARES,
        checkpoint=SAVED,
        times=Times(step=STEP),
    )
    simulation = Simulation(settings.by_node(), timed=False)
    simulation.run()
    of, names = "Llama 3 405B on 16,384 H100, 54 days", [one.cause.name for one in simulation.cluster.failures]
    planned, trained = names.count("planned maintenance"), simulation.ledger.useful * simulation.ledger.step
    yield Figure(of, "interruptions", "", 466, len(names), "L", fitted=True)
    yield Figure(of, "of them unexpected", "", 419, len(names) - planned, "L", fitted=True)
    yield Figure(of, "time that trains, above", "%", 90, 100 * trained / simulation.end, "L", least=True)


def table_of(of: str, figures: Sequence[Figure]) -> Table:
    """The figures of one run or table."""
    from rich.table import Table

    table = Table("figure", title=of, title_justify="left", min_width=74)
    for name in ("published", "ours", "error", "source"):
        table.add_column(name, justify="right")
    for one in figures:
        error = "fitted" if one.fitted else f"{one.error:+.1%}"
        error = error if not one.least else "holds" if one.error >= 0 else "MISSED"
        table.add_row(one.name, number(one.published, one.unit), number(one.ours, one.unit), error, one.source)
    return table
