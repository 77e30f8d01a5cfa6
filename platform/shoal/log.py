"""The log of a run's processes: what controllers, workers and mirrors say beside the record, for whoever debugs them.

Modules use `logging.getLogger(__name__)`, those that `python -m` runs their package's name; a process says once, by
`begin`, whose words these are. A line reads `12:03:04 WARNING [run/cell1/stage0/shard1@node3 step 57] ...`. What users
are told goes to the terminal and into the record, not here.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from shoal.printable import printable
from shoal.record.masking import mask_text

__all__ = ["LEVEL", "begin"]

LEVEL = "SHOAL_LOG"
"""Environment variable that names the least level that is logged: debug, info, warning or error."""
LEVELS = ("debug", "info", "warning", "error")
ROOT = logging.getLogger("shoal")


class Lines(logging.Formatter):
    """Lines that begin with their time, their level, and whose they are; credentials are masked, and nothing in them
    acts on a terminal. `step`: committed steps of the state at hand, -1 if there is none yet."""

    def __init__(self, who: str, step: Callable[[], int]) -> None:
        super().__init__("%(asctime)s %(levelname)s", datefmt="%H:%M:%S")
        self._who, self._step = who, step

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, and the traceback that it comes with on lines of its own."""
        step = self._step()
        where = self._who if step < 0 else f"{self._who} step {step}"
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        head = f"{self.formatTime(record, self.datefmt)} {record.levelname} [{where}]"
        return f"{head} {printable(mask_text(text), lines=True)}"


class Patient(logging.StreamHandler):
    """Writes to standard error as it is at that moment. A log that cannot be written (a full disk) stops nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on without the line."""


def begin(who: str, step: Callable[[], int] = lambda: -1, *, least: str = "info") -> None:
    """Let this process log as `who`, from the level that $SHOAL_LOG names or else `least` on."""
    handler = Patient()
    handler.setFormatter(Lines(who, step))
    ROOT.handlers[:] = [handler]
    ROOT.propagate = False
    wanted = os.environ.get(LEVEL, least).lower()
    known = wanted in LEVELS
    ROOT.setLevel((wanted if known else least).upper())
    if not known:
        ROOT.warning("%s=%s is none of %s: %s is taken", LEVEL, wanted, ", ".join(LEVELS), least)
