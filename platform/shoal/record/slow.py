"""A slow disk on order, for drills: every write of a run waits while a file in the run's folder says so. There is none
unless `shoal chaos --faults slow-disk` made it, and it holds for some seconds only, whatever becomes of its maker.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from shoal_core.files import replace_file

__all__ = ["begin", "end", "wait", "wait_in_time"]

_sleep = time.sleep  # a name of this module's own, for tests
FILE = ".slow-disk"
LONGEST = 5.0
"""Seconds that one write waits at most."""


def begin(folder: Path, pause: float, seconds: float) -> None:
    """Let each write of the run in `folder` take `pause` seconds longer for the next `seconds`."""
    replace_file(folder / FILE, json.dumps({"pause": pause, "until": time.time() + seconds}), durable=False)


def end(folder: Path) -> None:
    """Take the order back: writes wait no longer."""
    (folder / FILE).unlink(missing_ok=True)


def wait(folder: Path) -> None:
    """Wait before something is written, if that is ordered. What cannot be read is no order."""
    try:
        said = json.loads((folder / FILE).read_bytes())
        seconds = min(float(said["pause"]), float(said["until"]) - time.time(), LONGEST)
    except (OSError, ValueError, KeyError, TypeError):
        return
    if seconds > 0:
        _sleep(seconds)


def wait_in_time(folder: Path) -> None:
    """`wait`, where a folder that hangs is not waited for."""
    waiting = threading.Thread(target=wait, args=(folder,), daemon=True, name="slow-disk")
    waiting.start()
    waiting.join(LONGEST + 1.0)
