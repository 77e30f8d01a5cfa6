"""What `shoal plan --validate` prints: how far estimates are from published figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from shoal.cli.bill import number

if TYPE_CHECKING:
    from rich.table import Table

    from shoal_workloads.estimate.published import Figure

__all__ = ["validated"]


def validated(as_json: bool) -> None:
    """Print how far the estimate is from published figures."""
    from rich.console import Console

    from shoal_workloads.estimate.published import SOURCES, compared

    figures = compared()
    if as_json:
        print(json.dumps([{**vars(one), "error": one.error} for one in figures], indent=2))
        return
    console = Console(markup=False, highlight=False)
    for of, some in groupby(figures, lambda one: one.of):
        console.print(table_of(of, list(some)))
    for short, source in SOURCES.items():
        console.print(f"{short}: {source}")


def table_of(of: str, figures: Sequence[Figure]) -> Table:
    """The figures of one run or table."""
    from rich.table import Table

    table = Table("figure", title=of, title_justify="left", min_width=74)
    for name in ("published", "ours", "error", "source"):
        table.add_column(name, justify="right")
    for one in figures:
        error = "fitted" if one.fitted else f"{one.error:+.1%}"
        table.add_row(one.name, number(one.published, one.unit), number(one.ours, one.unit), error, one.source)
    return table
