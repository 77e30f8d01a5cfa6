"""When a save is begun that could not be, or came to nothing. Pure.

A save is due at the same steps on all ranks of a cell, but none knows how the last one went for the others. So while
that is open they ask each other between steps, seldom: after 1 step, 2, 4, ... and after one that failed the later the
oftener it did. Nobody waits for a save that is still under way; one that came to nothing is begun anew, with the
state of then.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Chances"]

LONGEST = 64
"""Steps between two looks at most."""


@dataclass
class Chances:
    """Of one cell, the same on each of its ranks."""

    open: bool = False
    """How the last save went is not known of all ranks."""
    _owed: bool = False
    _failures: int = 0
    _gap: int = 1
    _look: int = 0

    def began(self, steps: int) -> None:
        """A save of so many committed steps begins."""
        self.open, self._owed = True, False
        self._gap = min(LONGEST, 1 << min(self._failures, 10))
        self._look = steps + self._gap

    def asks(self, steps: int, *, due: bool) -> bool:
        """Whether ranks are to ask each other after so many steps how the last save went."""
        return self.open and (due or steps >= self._look)

    def heard(self, steps: int, *, due: bool, busy: bool, failed: bool) -> bool:
        """Whether to save now. busy: the last save is still under way on some rank; failed: it came to nothing."""
        if busy:
            self._owed |= due
            self._gap = min(LONGEST, 2 * self._gap)
            self._look = steps + self._gap
            return False
        self.open = False
        self._failures = self._failures + 1 if failed else 0
        return due or failed or self._owed
