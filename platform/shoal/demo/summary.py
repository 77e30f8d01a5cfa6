"""What the demo shows at its end: is it learning, what died, what did that cost, where to look next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from shoal import tracking
from shoal.demo.run import CLUSTER, Killed, Outcome
from shoal.record import layout, read
from shoal.record.expected import told
from shoal.record.jsonl import read_json
from shoal.record.place import address_of
from shoal_core.errors import UserError

__all__ = ["deaths", "figures", "show"]

WIDTH, HEIGHT = 72, 9
"""Of the chart, in characters and lines."""


def chart(values: Sequence[float]) -> list[str]:
    """A line chart in block characters: one text line a row, the highest value on top."""
    marks = " ▁▂▃▄▅▆▇█"
    step = max(1.0, len(values) / WIDTH)
    columns = [values[int(i * step)] for i in range(min(WIDTH, len(values)))]
    low, high = min(columns), max(columns)
    scale = (HEIGHT * 8 - 1) / ((high - low) or 1.0)
    levels = [1 + round((value - low) * scale) for value in columns]
    rows = []
    for row in reversed(range(HEIGHT)):
        label = f"{low + (row + 1) * 8 / scale:7.2f} " if row in (0, HEIGHT - 1) else " " * 8
        rows.append(label + "".join(marks[max(0, min(8, level - row * 8))] for level in levels))
    return rows


def show(outcome: Outcome, console: Console, keep: bool) -> None:
    """Print the summary of a finished demo."""
    path = outcome.path
    run, steps = read_json(path / layout.RUN), read.steps(path)
    if run is None:
        raise UserError(
            f"the run {path.name} did not close its record: the cluster or the job's driver was lost on the way",
            f"see {path / layout.EVENTS} and ray.log beside it, then run the demo again",
        )
    console.print("\n5. What happened\n", style="bold")
    console.print("loss (nats a token), by step")
    for row in chart([line["loss"] for line in steps]):
        console.print(row, style="cyan", highlight=False)
    console.print(f"{'':8}step 1 {'':>55} step {run['steps']}\n")
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in outcome.seconds.items())
    facts = Table.grid(padding=(0, 2))
    facts.add_row("status", f"{run['status']}: {run['steps']} steps, {run['tokens']:,.0f} tokens")
    facts.add_row("held-out text", f"{run['bpb_before']:.3f} bits a byte before, {run['bpb']:.3f} after")
    facts.add_row("speed", f"{run['tokens_per_second']:,.0f} tokens a second over all, deaths included ({seconds})")
    facts.add_row(
        "lost",
        f"{run['steps_lost']} steps; {run['samples_skipped']} samples skipped, {run['samples_repeated']} seen twice",
    )
    console.print(facts, highlight=False)
    console.print()
    if outcome.kills:
        console.print(deaths(outcome.kills, run["recovery_events"]))
    for event in run["recovery_events"]:
        phases = ", ".join(f"{name} {took:.2f}" for name, took in event["phases"].items() if took is not None)
        console.print(f"  {event['sentence']}\n    phases (s): {phases}", highlight=False)
    for line in told(run):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    console.print("\nWhere to look next", style="bold")
    mirror = read_json(path / layout.MLFLOW)
    console.print(f"  report    {path / layout.REPORT}", highlight=False, soft_wrap=True)
    console.print(
        f"  record    {address_of(path)} (steps.jsonl, events.jsonl, samples.jsonl, run.json)",
        highlight=False,
        soft_wrap=True,
    )
    if mirror:
        look = shlex.join([".venv/bin/mlflow", "ui", "--backend-store-uri", tracking.default_uri(path)])
        console.print(f"  MLflow    run {mirror['mlflow_run_id']}: {look}", highlight=False, soft_wrap=True)
    if keep:
        console.print(
            f"  cluster   still up: shoal cluster status --name {CLUSTER}; end it: shoal cluster down --name {CLUSTER}"
        )


def figures(outcome: Outcome) -> dict[str, Any]:
    """What `show` tells, as plain values: the nodes that were killed, seconds by part, and the record's summary."""
    path = outcome.path
    return {
        "run": path.name,
        "record": address_of(path),
        "report": str(path / layout.REPORT),
        "killed": [asdict(kill) for kill in outcome.kills],
        "seconds": outcome.seconds,
        "summary": read_json(path / layout.RUN),
    }


def deaths(kills: Sequence[Killed], recoveries: Sequence[Mapping[str, Any]]) -> Table:
    """What each node's death cost, in the record's own figures: they count from its workers' last sign of life.

    recoveries: `recovery` events of the run. A cell that goes on smaller first has two of them for one death.
    """
    title = "Nodes killed (SIGKILL to the raylet and every worker); times since their last sign of life"
    table = Table(title=title, title_justify="left")
    for column in ("node", "after step", "noticed", "next committed step", "full strength", "steps lost"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for kill in kills:
        own = [one for one in recoveries if kill.node in one["nodes"]]
        noticed = min((one["phases"]["detect"] for one in own), default=None)
        following = min((one["next_commit"] for one in own), default=None)
        full = max((one["full_strength"] for one in own if one["full_strength"] is not None), default=None)
        times = [words(noticed), words(following), words(full)]
        table.add_row(kill.node, str(kill.step), *times, str(max((one["steps_lost"] for one in own), default=0)))
    return table


def words(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"
