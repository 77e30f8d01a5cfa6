"""Files for pictures, looked at before what is drawn there is worked out, which may take minutes."""

from __future__ import annotations

import os
from pathlib import Path

from shoal_core.errors import UserError

__all__ = ["check_picture"]


def check_picture(option: str, path: Path | None, endings: tuple[str, ...] = (".svg", ".png")) -> None:
    """Refuse what could not be written; None: no picture is asked for.

    Raises:
        UserError: another ending than one of these, or a place that takes no file.
    """
    if path is None:
        return
    if path.suffix not in endings:
        words = f"is neither {' nor '.join(endings)}" if len(endings) > 1 else f"does not end in {endings[0]}"
        raise UserError(f"{option}: {path} {words}", f"end the picture's name in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise UserError(f"{option}: cannot write {path}: there is no folder {path.parent}", "name another place")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(
            f"{option}: cannot write {path}: {'it is a folder' if path.is_dir() else 'no right to write there'}",
            "name another place",
        )
