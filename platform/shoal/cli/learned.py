"""`shoal plan --learn RUN...` and `--validate RUN...`: what runs took, beside what was predicted as they began."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.printable import printable
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from shoal_workloads.estimate.hardware import Learned

__all__ = ["Measured", "factors", "learn", "measured", "runs_table", "runs_values"]

FIGURES = ("step_seconds", "memory_peak_bytes")
OVER = ("done", "failed", "stopped")


class Measured(NamedTuple):
    """A run's sections of `run.json`."""

    name: str
    status: str
    predicted: dict[str, Any]
    actual: dict[str, Any]

    def error(self, name: str) -> float | None:
        """Of what was predicted, relative to what came; None: one of them is not known."""
        said, came = self.predicted.get(name), self.actual.get(name)
        return said / came - 1 if said and came else None

    def factor(self, name: str, part: str) -> float | None:
        """By which the figure has to be multiplied, before anything was learned, to be what came. part: `step` or
        `memory`, of what had been learned."""
        error, before = self.error(name), self.predicted.get("learned") or {}
        return None if error is None else float(before.get(part, 1.0)) / (1 + error)


def measured(names: Sequence[str], storage: str | None) -> list[Measured]:
    """Runs by their ids or directories; without any, all of the storage that something was predicted of. storage: none
    is `$SHOAL_STORAGE`, as of every command that finds runs.

    Raises:
        UserError: there is no such run; of a run that is named nothing was predicted; there is none at all.
    """
    from shoal.record import finding
    from shoal.record.place import local_record

    storage = storage or os.environ.get("SHOAL_STORAGE")
    if not names:
        found = [read(local_record(one.address)) for one in finding.runs(storage, lambda error: None)]
        known = [one for one in found if one is not None]
        if not known:
            where = storage or finding.HOME
            raise UserError(f"--storage {where}: of no run there anything was predicted", "name another storage")
        return known
    each = []
    for name in names:
        one = read(finding.find_run(name, storage))
        if one is None:
            raise UserError(
                f"run {name}: nothing was predicted as it began",
                "it ran before Shoal did that, with predict=false, or for no time; name another run",
            )
        each.append(one)
    return each


def read(path: Path) -> Measured | None:
    """None: nothing was predicted of it. Raises: UserError: its record is damaged."""
    from shoal.record.summary import summarize

    run = summarize(path)
    if run["predicted"] is None:
        return None
    return Measured(run["run_id"], run["status"], run["predicted"], run["actual"])


# ---- learning


def learn(names: Sequence[str], storage: str | None, as_json: bool) -> None:
    """Write into the user's own table what later plans are corrected by, and print it.

    Raises:
        UserError: as `measured`; a run says nothing of the time of its steps, or the runs are of several devices.
    """
    from shoal_workloads.estimate.calibrate import written
    from shoal_workloads.estimate.hardware import Hardware, known_hardware, own_file

    found = measured(names, storage)
    for one in found:
        check(one)
    name = str(found[0].predicted["hardware"])
    if others := [one for one in found if one.predicted["hardware"] != name]:
        raise UserError(
            f"run {others[0].name} is of a {others[0].predicted['hardware']}, run {found[0].name} of a {name}",
            "learn from the runs of one kind of device at a time",
        )
    entry: Hardware | None = known_hardware().get(name)
    if entry is None:
        raise UserError(f"run {found[0].name}: the table has no {name} any more", "shoal plan --calibrate")
    learned = factors(found)
    place = own_file()
    written(name, entry.model_copy(update={"learned": learned}), place)
    if as_json:
        after = {"hardware": name, "file": str(place), "learned": learned.model_dump(mode="json")}
        print(json.dumps({**after, "runs": runs_values(found)}, indent=2))
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.print(runs_table(found))
    console.print(printable(f"{name} in {place}: plans are corrected {learned.words}"))


def check(one: Measured) -> None:
    """Raises: UserError: nothing can be learned from this run."""
    if one.status not in OVER:
        raise UserError(f"run {one.name} is still running", "wait for its end, or `shoal stop` it")
    if one.predicted.get("step_seconds") is None:
        why = "; ".join(one.predicted.get("why") or ()) or "the workload said nothing of it"
        raise UserError(
            f"run {one.name}: how long its steps take was not predicted ({why})", "calibrate first, then train"
        )
    if one.predicted.get("hardware") is None:
        raise UserError(
            f"run {one.name}: its workload does not say by which entry of the table it predicted its steps",
            "name runs whose workload's `predicted` says `hardware`",
        )
    if one.actual["step_seconds"] is None:
        raise UserError(
            f"run {one.name}: too few steps followed one another undisturbed in the shape that was predicted",
            "name a longer run",
        )


def factors(found: Sequence[Measured]) -> Learned:
    """The middle of what the runs' own factors are. Of the memory those alone that were measured on a device: a
    process's own holds more than the training."""
    from shoal_workloads.estimate.hardware import Learned

    steps = [one.factor("step_seconds", "step") for one in found]
    on_devices = [one for one in found if one.actual.get("memory_measured") == "device"]
    sizes = [one.factor("memory_peak_bytes", "memory") for one in on_devices]
    known = [[one for one in some if one is not None] for some in (steps, sizes)]
    step, memory = (round(median(some), 4) if some else 1.0 for some in known)
    return Learned(step=step, memory=memory, runs=tuple(one.name for one in found), of=time.strftime("%Y-%m-%d"))


# ---- for people and programs


def runs_values(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """For a program."""
    return [
        {
            "run": one.name,
            "device": one.predicted.get("device"),
            "hardware": one.predicted.get("hardware"),
            **{
                name: {"predicted": one.predicted.get(name), "actual": one.actual.get(name), "error": one.error(name)}
                for name in FIGURES
            },
        }
        for one in found
    ]


def runs_table(found: Sequence[Measured]) -> Table:
    """A line a run."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from shoal.record.expected import row

    table = Table(
        "run", "on", title="runs: predicted as they began, and measured", title_justify="left", box=SIMPLE_HEAD
    )
    for name in ("step, s", "took", "error", "memory", "took", "error"):
        table.add_column(name, justify="right")
    for one in found:
        figures = [row(name, one.predicted.get(name), one.actual.get(name)) for name in FIGURES]
        where = str(one.predicted.get("hardware") or one.predicted.get("device"))
        words = [word for figure in figures for word in (figure.predicted, figure.actual, figure.words)]
        table.add_row(Text(printable(one.name)), Text(printable(where)), *words)
    return table
