"""The end of a run: workers reaped, record closed, report and mirror finished. No part of it keeps another from being
done."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from shoal import tracking
from shoal.control.mishaps import say

if TYPE_CHECKING:
    from shoal.control.controller import Controller

__all__ = ["finish"]

REAPED = 5.0
"""Seconds within which the lifelines of workers that were ended close."""
REPORT = 120.0
"""Seconds after which a report that is not finished is given up."""


def finish(one: Controller, outcome: tuple[str, str], tracker: subprocess.Popen[bytes] | None) -> tuple[str, str]:
    """Reap every worker, then close the record: nothing of the run is left when `run.json` says that it ended.

    Returns (status, reason), the reason with what of the record could not be written.
    """
    status, reason = outcome
    for name in list(one.spawner.started):
        one.spawner.kill(name)
    deadline = time.monotonic() + REAPED
    while one.lifelines.lines and time.monotonic() < deadline:
        time.sleep(0.05)
    one.lifelines.close()
    try:
        problem = one.scribe.ended(status, reason, one.state.committed)
    except Exception as error:
        problem = one.mishaps.note(error)
    if problem:
        reason = f"{reason}; {problem}"
        say(problem)
    try:
        subprocess.run([sys.executable, "-m", "shoal.report", str(one.rundir)], check=False, timeout=REPORT)
        unmirrored = None if tracker is None else tracking.finish(tracker, one.rundir)
        if unmirrored:
            say(unmirrored)
    except (OSError, subprocess.SubprocessError) as error:
        say(f"at the end of the run: {error}")
    return status, reason
