"""Where this user's runs lie: a small file a run id in the user's state folder, so that an id is enough to find one."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from shoal.record.place import from_root
from shoal_core.store import local_folder

__all__ = ["find", "folder", "known", "note"]

KEPT_S = 30 * 86400.0
"""Seconds for which a note is kept though its run is not there: its disk may come back."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def folder() -> Path:
    """`$XDG_STATE_HOME/shoal/runs`."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "shoal" / "runs"


def note(run_id: str, address: str) -> None:
    """Write down where a run lies; the last one of an id counts. A state folder that cannot be written costs only that
    the run must be named by its path. Notes of runs that are long gone are swept."""
    with contextlib.suppress(OSError):
        for file in folder().glob("*"):
            where = _read(file)
            gone = where is None or ((path := local_folder(where)) is not None and not path.is_dir())
            if gone and time.time() - file.stat().st_mtime > KEPT_S:
                file.unlink()
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder() / run_id).write_text(from_root(address), encoding="utf-8", errors="surrogateescape")


def find(run_id: str) -> str | None:
    """Where the run of that id was last put; None if that is not known."""
    return _read(folder() / run_id) if _NAME.fullmatch(run_id) else None


def known() -> list[str]:
    """Every place that was written down, whether something is there still or not."""
    try:
        names = sorted(os.listdir(folder()))
    except OSError:
        return []
    return [address for name in names if (address := _read(folder() / name)) is not None]


def _read(file: Path) -> str | None:
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return text if (text.startswith("/") or "://" in text) and "\0" not in text else None
