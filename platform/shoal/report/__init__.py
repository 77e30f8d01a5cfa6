"""The report of a run: one HTML file with its pictures inside, made from the record alone."""

from __future__ import annotations

from pathlib import Path

__all__ = ["build"]


def build(path: Path | str) -> Path:
    """Write `report.html` for the run directory `path`, finished or not, and return where it is.

    Raises:
        UserError: the record is damaged.
    """
    from shoal.record import layout
    from shoal.record.jsonl import write_atomic
    from shoal.report.history import History
    from shoal.report.page import page

    path = Path(path)
    target = path / layout.REPORT
    write_atomic(target, page(History.read(path)))
    return target
