"""How far a build is: a bar in a terminal, a line every few seconds elsewhere (a job's log)."""

from __future__ import annotations

import sys
import time

__all__ = ["Progress"]


class Progress:
    """Counts work done out of `total` (in bytes of text) and says so on standard error."""

    def __init__(self, label: str, total: int, every: float = 5.0) -> None:
        self.label, self.total, self.done = label, max(1, total), 0
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every
        self._start = self._said = time.monotonic()

    def advance(self, amount: int, note: str = "") -> None:
        """`amount` more is done; `note` is shown beside the figures."""
        self.done += amount
        now = time.monotonic()
        if now - self._said >= self._every:
            self._said = now
            self._say(note, "\r" if self._terminal else "", "" if self._terminal else "\n")

    def finish(self, note: str = "") -> None:
        """The last line, with the totals; what there was to do was a guess, and all of it is done."""
        self.total = max(1, self.done)
        self._say(note, "\r" if self._terminal else "", "\n")

    def _say(self, note: str, before: str, after: str) -> None:
        seconds = max(1e-9, time.monotonic() - self._start)
        share = min(1.0, self.done / self.total)
        text = f"{self.label}: {share:4.0%}  {self.done / 1e6:,.1f} MB  {self.done / 1e6 / seconds:,.1f} MB/s  {note}"
        print(f"{before}{text:<100}" if before else text, end=after, file=sys.stderr, flush=True)
