"""`shoal report`: write a run's report again, or while it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli.status import Storage
from shoal.printable import printable

__all__ = ["report"]


def report(
    run: Annotated[str | None, typer.Argument(help="Run id or directory; the last active run if left out.")] = None,
    storage: Storage = None,
) -> None:
    """Write report.html into the run's directory from its record, and print where it is."""
    from shoal.record.read import find_run
    from shoal.report import build

    print(printable(build(find_run(run, storage))))
