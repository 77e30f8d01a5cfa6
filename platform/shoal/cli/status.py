"""`shoal status` and `shoal runs`: how runs are doing, read from their directories."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.printable import figure, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from shoal.record.finding import Found

__all__ = ["Storage", "runs", "status", "told"]

Storage = Annotated[
    str | None,
    typer.Option(
        envvar="SHOAL_STORAGE",
        help="Where the runs lie, a folder or s3://BUCKET/PREFIX; by default `runs`, and wherever those started from "
        "this machine lie.",
    ),
]
COLOURS = {"done": "green", "running": "green", "recovering": "yellow", "failed": "red", "stopped": "yellow"}


def status(
    run: Annotated[str | None, typer.Argument(help="Run id or directory; the last active run if left out.")] = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[bool, typer.Option(help="Show it again every second until the run ends.")] = False,
) -> None:
    """Show a run's progress, its workers by cell and node, and the last events. Needs only the run's directory."""
    from shoal.record.finding import find_run
    from shoal.record.place import followed
    from shoal.record.read import readable

    path = find_run(run, storage)
    with readable(path), followed(path, told) if watch else nullcontext():
        show(path, as_json, watch)


def told(line: str) -> None:
    """A word beside what is shown."""
    print(f"shoal: {printable(line)}", file=sys.stderr, flush=True)


def show(path: Path, as_json: bool, watch: bool) -> None:
    """Print the state of one run, once or until it ends."""
    from rich.console import Console
    from rich.live import Live

    from shoal.record.status import OVER, snapshot

    if as_json:
        while True:
            found = snapshot(path)
            print(json.dumps(found), flush=True)
            if not watch or found["status"] in OVER:
                return
            time.sleep(1.0)
    if not watch:
        Console().print(picture(path, snapshot(path)))
        return
    with Live(picture(path, snapshot(path)), auto_refresh=False) as live:
        while (found := snapshot(path))["status"] not in OVER:
            live.update(picture(path, found), refresh=True)
            time.sleep(1.0)
        live.update(picture(path, found), refresh=True)


def runs(
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one object for each run.")] = False,
) -> None:
    """List the runs in the storage, the last active first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from shoal.record import finding

    found = finding.runs(storage, lambda error: told(f"not shown: {error}"))
    listed = [about(one) for one in found]
    if as_json:
        print(json.dumps(listed))
        return
    if not found:
        print(f"no runs in {printable(storage or finding.HOME)}")
        return
    table = Table("run", "status", "steps", "loss", "last active", box=None, header_style="bold")
    if storage is None:
        table.add_column("in", overflow="fold")
    for one, now in zip(found, listed, strict=True):
        row: list[RenderableType] = [Text(printable(one.name))]
        if now["problem"] is None:
            row += [state(now), progress(now), figure(now["loss"], ".4f")]
        else:
            row += [Text("damaged", style="red"), "-", "-"]
        row += [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.active))]
        table.add_row(*row, *([Text(printable(one.storage))] if storage is None else []))
    console = Console()
    console.print(table)
    for now in listed:
        if now["problem"] is not None:
            console.print(Text(f"damaged: {printable(now['problem'])}", style="red"), soft_wrap=True)


def about(one: Found) -> dict[str, Any]:
    """What the list tells of a run; of one whose record is damaged `problem` says why, and `status` is null."""
    from shoal_core.errors import UserError

    fields = {"run": one.name, "address": one.address, "active": one.active or None}
    now: dict[str, Any] = {}
    problem = None
    try:
        now = one.status()
    except UserError as error:
        problem = error.problem
    return {
        **fields,
        **{name: now.get(name) for name in ("status", "silent", "step", "steps", "loss")},
        "problem": problem,
    }


def state(now: Mapping[str, Any]) -> Text:
    """The status in its colour; a running controller that says nothing is not running as far as anyone can tell."""
    from rich.text import Text

    name = "silent" if now["silent"] else str(now["status"])
    return Text(printable(name), style=COLOURS.get(name, "red" if now["silent"] else "cyan"))


def progress(now: Mapping[str, Any]) -> str:
    return f"{now['step']:,}" + (f" of {now['steps']:,}" if now["steps"] else "")


def picture(path: Path, now: Mapping[str, Any]) -> RenderableType:
    """The whole picture of one run for a terminal."""
    from rich.console import Group
    from rich.text import Text

    from shoal.record.sentences import count

    parts: list[RenderableType] = [
        Text.assemble((printable(now["run_id"]), "bold"), "  ", state(now), f"  step {progress(now)}"),
        bar(now),
    ]
    if now["silent"]:
        since = "has not written yet" if now["age"] is None else f"has written nothing for {now['age']:.0f} s"
        parts.append(Text(f"The controller {since}: what stands here is old.", style="red"))
    if now.get("behind") is not None:
        parts.append(lag(now["behind"], now.get("behind_most") or 0.0))
    if now.get("asked"):
        asked = f"The cluster's autoscaler is asked for {count(now['asked'], 'slot')}"
        since = time.strftime("%H:%M:%S", time.localtime(now.get("asked_since") or 0.0))
        parts.append(Text(f"{asked}, since {since}.", style="dim"))
    if now["workers"]:
        parts += [Text(), workers(now)]
    return Group(*parts, *shapes_of(path), Text(), story(path), *as_predicted(path))


def as_predicted(path: Path) -> list[RenderableType]:
    """What was predicted of an ended run, and what it took."""
    from rich.text import Text

    from shoal.record import layout
    from shoal.record.expected import told
    from shoal.record.jsonl import read_json

    lines = told(read_json(path / layout.RUN) or {})
    return [Text(), *(Text(printable(line)) for line in lines)] if lines else []


def shapes_of(path: Path, count: int = 6) -> list[RenderableType]:
    """How many cells trained, and of how many workers each, and since when: the last times that this changed. Nothing
    where it never did."""
    from rich.text import Text

    from shoal.record.read import events
    from shoal.record.shapes import shapes

    found = shapes(events(path))
    if len(found) < 2:
        return []
    told = [f"{shape} {time.strftime('%H:%M:%S', time.localtime(shape.time))}" for shape in found[-count:]]
    before = ["..."] if len(found) > count else []
    return [Text(), Text("cells x workers, since when", style="bold"), Text(printable(" > ".join([*before, *told])))]


def lag(behind: float, most: float) -> Text:
    """How far the store that a record lies on was behind it."""
    from rich.text import Text

    from shoal.control.lag import BOUND

    said = f"Its store was {behind:.1f} s behind the record when this was written, {most:.1f} s at most so far."
    return Text(said, style="yellow" if behind > BOUND else "dim")


def bar(now: Mapping[str, Any]) -> RenderableType:
    """Progress and the last figures, in one row."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    row = Table.grid(padding=(0, 2))
    cells: list[RenderableType] = (
        [ProgressBar(total=now["steps"], completed=now["step"], width=30)] if now["steps"] else []
    )
    row.add_row(*cells, facts(now), style="dim")
    return row


def facts(now: Mapping[str, Any]) -> str:
    from shoal.record.sentences import count, gpu_words

    told = {
        "loss": lambda value: f"loss {value:.4f}",
        "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
        "cells": lambda value: count(value, "cell"),
        "generation": lambda value: f"generation {value}",
    }
    known = [words(now[key]) for key, words in told.items() if now.get(key) is not None]
    return ", ".join([*known, *gpu_words(now)])


def workers(now: Mapping[str, Any]) -> RenderableType:
    """A row a worker, cell by cell, spares last."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    seated = [worker["coords"] for worker in now["workers"] if isinstance(worker.get("coords"), Mapping)]
    places = list(seated[0]) if seated else []
    table = Table(
        "cell",
        *(escape(printable(place)) for place in places),
        "node",
        "pid",
        "step",
        "heartbeat",
        "actor",
        box=None,
        header_style="bold",
    )
    order = sorted(now["workers"], key=lambda w: (w["cell"] is None, w["cell"] or 0, str(w.get("coords")), w["node"]))
    for worker in order:
        spare = worker["cell"] is None
        age = worker["heartbeat_age"]
        coords = worker["coords"] if isinstance(worker.get("coords"), Mapping) else {}
        table.add_row(
            "spare" if spare else str(worker["cell"]),
            *(Text(printable(coords.get(place, ""))) for place in places),
            Text(printable(worker["node"])),
            Text(printable(worker.get("pid"))),
            "-" if spare else figure(worker["step"], "d"),
            Text(f"{age:.1f} s ago", style="red" if age > 5 else ""),
            Text(printable(worker["actor"].partition("/")[2])),
            style="dim" if spare else "",
        )
    return table


def story(path: Path, count: int = 8) -> RenderableType:
    """The last events of the run as sentences, with their time of day."""
    from rich.table import Table
    from rich.text import Text

    from shoal.record.read import events
    from shoal.record.sentences import BACKGROUND, sentence

    told = [
        (event["time"], text)
        for event in events(path)
        if event["kind"] not in BACKGROUND and (text := sentence(event)) is not None
    ]
    rows = Table.grid(padding=(0, 2))
    for when, text in told[-count:]:
        rows.add_row(time.strftime("%H:%M:%S", time.localtime(when)), Text(text))
    return rows
