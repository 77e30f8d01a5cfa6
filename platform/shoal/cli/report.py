"""`shoal report`: write a run's report again, or while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.figures import AsJson, give
from shoal.cli.status import Storage
from shoal.printable import printable

__all__ = ["report"]


def report(
    run: Annotated[str | None, typer.Argument(help="Run id or directory; the last active run if left out.")] = None,
    storage: Storage = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw only who trained where and when, into this .svg or .png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write report.html into the run's directory from its record, or one picture of it, and print where it is."""
    from shoal import report as made
    from shoal.record.finding import find_run

    path = find_run(run, storage)
    written = str(made.build(path) if picture is None else made.picture(path, picture))
    if as_json:
        give({"run": path.name, "picture" if picture else "report": written})
        return
    print(printable(written))
