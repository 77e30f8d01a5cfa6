"""A slow disk on order, for drills: every write of a run waits while a file in the run's folder says so. There is none
unless `shoal chaos --faults slow-disk` made it, and it holds for some seconds only, whatever becomes of its maker.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from shoal_core.files import replace_file

__all__ = ["lift", "order", "suffer"]

_sleep = time.sleep  # a name of this module's own, for tests
FILE = ".slow-disk"
LONGEST = 5.0
"""Seconds that one write waits at most."""


def order(folder: Path, pause: float, seconds: float) -> None:
    """Let each write of the run in `folder` take `pause` seconds longer for the next `seconds`."""
    replace_file(folder / FILE, json.dumps({"pause": pause, "until": time.time() + seconds}), durable=False)


def lift(folder: Path) -> None:
    """Take the order back."""
    (folder / FILE).unlink(missing_ok=True)


def suffer(folder: Path) -> None:
    """To be called before something is written: wait, if that is ordered. What cannot be read is no order."""
    try:
        said = json.loads((folder / FILE).read_bytes())
        wait = min(float(said["pause"]), float(said["until"]) - time.time(), LONGEST)
    except (OSError, ValueError, KeyError, TypeError):
        return
    if wait > 0:
        _sleep(wait)
