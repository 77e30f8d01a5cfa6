"""What Ray shows of a run: its Train state and the figures of its Train board, kept by a thread that reads the journal.

Nothing waits for it: the file is the queue, so a head that is away for hours costs nothing but a view that is old. A
controller that comes back reads the journal from its start, and shows all that was before it too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from shoal.record import read
from shoal.record.raystate import RunState

__all__ = ["View", "Views"]

logger = logging.getLogger(__name__)
PAUSE = 0.2
"""Seconds between two looks into the journal."""
CHECK = 5.0
"""Seconds between two looks whether what was shown is still there, and between two tries of what failed."""


class View(Protocol):
    """Shows a run."""

    def show(self, state: RunState) -> None:
        """Show this state. Whatever it raises is told, and it is tried again."""

    def check(self) -> None:
        """See whether what was shown is still there. Whatever it raises is told."""


class Views:
    """Keeps views of the run whose record lies in the folder `run`. `views`: makes each, by its name, in the thread;
    `since`: lines before this time (unix seconds) are of sessions before."""

    def __init__(self, run: Path, views: Mapping[str, Callable[[], View]], since: float) -> None:
        self._makers, self._tail, self._since = views, read.tail_events(run), since
        self._state = RunState()
        self._views: dict[str, View] = {}
        self._again: dict[str, float] = {}
        """When (monotonic) a view that failed is tried again."""
        self._told: set[str] = set()
        self._checked = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="views")

    def start(self) -> None:
        """Begin; never waits."""
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Show what is left, for so long at most."""
        self._closing.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("what Ray shows of the run is not up to date: Ray did not take it within %g s", seconds)

    def _work(self) -> None:
        last = False
        while not last:
            last = self._closing.wait(PAUSE)
            try:
                self._look(last)
            except Exception as error:
                self._tell("the journal", error)

    def _look(self, last: bool) -> None:
        lines = [line for line in self._tail.read() if line["time"] >= self._since]
        self._since = 0.0  # of what comes all counts: a clock may be set back
        for line in lines:
            try:
                self._state.take(line)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                self._tell(f"a line of the journal, {line['kind']}", error)
        now = time.monotonic()
        if due := now > self._checked + CHECK:
            self._checked = now
        for name in self._makers:
            if (lines or due or last) and self._state.began and (last or now > self._again.get(name, now - 1)):
                self._show(name, due)

    def _show(self, name: str, due: bool) -> None:
        try:
            view = self._views.get(name)
            if view is None:
                view = self._views[name] = self._makers[name]()
            if due:
                view.check()
            view.show(self._state)
            self._again.pop(name, None)
        except Exception as error:
            self._again[name] = time.monotonic() + CHECK
            self._tell(name, error)

    def _tell(self, what: str, error: Exception) -> None:
        """Once for each that fails."""
        if what not in self._told:
            self._told.add(what)
            failure = f"{type(error).__name__}: {error}"
            logger.warning("training goes on, but what Ray shows of the run may be old (%s: %s)", what, failure)
