"""The report of a run: one HTML file with its pictures inside, made from the record alone."""

from __future__ import annotations

from pathlib import Path

from shoal_core.errors import UserError

__all__ = ["build", "picture"]


def build(path: Path | str) -> Path:
    """Write `report.html` for the run directory `path`, finished or not, and return where it is.

    Raises:
        UserError: the record is damaged, or the report cannot be written.
    """
    from shoal.record import layout, read
    from shoal.report.history import History
    from shoal.report.page import page
    from shoal_core.files import replace_file

    path = Path(path)
    target = path / layout.REPORT
    with read.readable(path):
        text = page(History.read(path))
    try:
        replace_file(target, text)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})", "make room, or mend its rights") from error
    return target


def picture(path: Path | str, target: Path) -> Path:
    """Draw who trained where and when in the run directory `path`, and every event on it, into `target` (.svg, .png).

    Raises:
        UserError: the record is damaged, or the picture cannot be written.
    """
    from shoal.record import read
    from shoal.report.history import History
    from shoal.report.style import draw
    from shoal.report.timeline import timeline_figure

    path = Path(path)
    with read.readable(path):
        figure = timeline_figure(History.read(path))
    draw(figure, "workers by node over time", target)
    return target
