"""How far a build is: a bar in a terminal, a line every few seconds elsewhere (a job's log)."""

from __future__ import annotations

import sys
import time
from types import TracebackType

__all__ = ["Count", "Progress"]


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


class Count:
    """Counts things that are seldom many, and says so on standard error where that takes more than a few seconds.

    Args:
        label: what is done.
        noun: what is counted.
        total: how many there are, 0 if that is not known.
        every: seconds before the first line and between two.
    """

    def __init__(self, label: str, noun: str, total: int = 0, every: float = 5.0) -> None:
        self.label, self.noun, self.total, self.done = label, noun, total, 0
        self._terminal, self._every, self._said = sys.stderr.isatty(), every, time.monotonic()
        self._shown = False

    def __enter__(self) -> Count:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._shown and self._terminal:
            print(file=sys.stderr, flush=True)

    def advance(self, amount: int) -> None:
        """`amount` more are done."""
        self.done += amount
        now = time.monotonic()
        if now - self._said < self._every:
            return
        self._said, self._shown = now, True
        whole = f" of {self.total:,}" if self.total else ""
        text = f"{self.label}: {self.done:,}{whole} {self.noun}"
        print(
            f"\r{text:<60}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True
        )
