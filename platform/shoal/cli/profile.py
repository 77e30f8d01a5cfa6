"""`shoal profile`: what chosen workers of a run do in some steps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.figures import AsJson, give
from shoal.cli.status import Storage
from shoal.printable import printable
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["profile"]

MOST = 100
"""Steps of one profile: a trace grows by megabytes a step."""


def profile(
    run: Annotated[str | None, typer.Argument(help="Run id or directory; the last active run if left out.")] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            help="FIRST..LAST, or one; counted from 0, as in the record. Left out: what was profiled is listed."
        ),
    ] = None,
    worker: Annotated[
        list[str] | None, typer.Option(help="Part of a worker's name (may be repeated); by default the first worker.")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="What a GPU's memory holds, instead of a trace.")] = False,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Have steps of a run that trains profiled: a trace of each chosen worker for https://ui.perfetto.dev, or, with
    --memory, a snapshot for https://pytorch.org/memory_viz."""
    from shoal.record.finding import find_run
    from shoal.record.place import address_of
    from shoal.record.status import OVER, snapshot
    from shoal.record.wish import Wish, leave
    from shoal_core.store import join, open_store

    path = find_run(run, storage)
    if steps is None:
        listed(address_of(path), as_json)
        return
    first, last = parsed(steps)
    now = snapshot(path)
    if now["status"] in OVER or now["silent"]:
        raise UserError(f"run {path.name} does not train now ({now['status']})", "name one that does: shoal runs")
    if first <= now["step"]:
        raise UserError(
            f"--steps {steps}: the run has begun step {now['step']} already", f"name later ones: {now['step'] + 5}, say"
        )
    if memory and device_of(path) != "cuda":
        raise UserError("--memory: this run computes on CPUs, whose memory torch does not record", "leave it out")
    leave(open_store(address_of(path)), Wish(first, last, tuple(worker or ()), memory))
    there = join(address_of(path), "profiles")
    if as_json:
        asked = {"first": first, "last": last, "workers": list(worker or ()), "memory": memory}
        give({"run": path.name, "asked": asked, "profiles": there})
        return
    print(f"asked for; the journal of {printable(path.name)} tells when it is there: {printable(there)}")


def listed(address: str, as_json: bool) -> None:
    """Print which profiles lie at a run's address, oldest first, and how large they are."""
    from shoal.record.beside import PROFILES, profiles
    from shoal_core.store import join

    found = profiles(address)
    if as_json:
        give([{"path": join(address, entry.name), "bytes": entry.bytes} for entry in found])
        return
    for entry in found:
        print(f"{entry.bytes:>13,}  {printable(join(address, entry.name))}")
    if not found:
        print(f"no profile in {printable(join(address, PROFILES))}: name steps with --steps to have some made")


def parsed(steps: str) -> tuple[int, int]:
    """FIRST..LAST, or one step.

    Raises:
        UserError: written otherwise, backwards, or too many.
    """
    found = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", steps)
    if found is None:
        raise UserError(f"--steps {printable(steps)}: no steps", "write FIRST..LAST, 20..22 say")
    first = int(found[1])
    last = int(found[2] or first)
    if not first <= last < first + MOST:
        raise UserError(f"--steps {steps}: from 1 to {MOST} steps, the first of them first", "write 20..22, say")
    return first, last


def device_of(path: Path) -> str:
    """What the run's workers compute on (`Workload.runs_on`), by its recorded job."""
    from shoal.record.read import config
    from shoal_core.loading import make_workload

    return make_workload(config(path)["workload"]).runs_on
