"""When a save is begun that could not be, or came to nothing. Pure.

All cells save a state together, so all workers have to know of each save. None knows how the last one went for the
others; so each says in the vote of every step whether it wants one, and whether one is under way there. What a vote
decides is done two steps later: by then whoever committed the step between late has heard it too. Nobody waits for a
save that is under way: what was due meanwhile is made up for. One that came to nothing is begun anew, with the state of
then: after 1 step, 2, 4, ... the later the oftener it did. What a generation has decided ends with it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AHEAD", "LONGEST", "Chances"]

LONGEST = 64
"""Steps after a save that failed until the next is begun, at most."""
AHEAD = 2
"""Steps from what is committed when workers vote to the boundary that the vote decides about."""


@dataclass
class Chances:
    """Of one worker. What the votes decided is the same on all that heard them."""

    _open: bool = False
    _owed: bool = False
    _failures: int = 0
    _look: int = 0
    _next: int = -1

    def entered(self) -> None:
        """A generation begins: what the last one decided and did not begin any more is still wanted."""
        self._owed |= self._next >= 0
        self._next = -1

    def began(self, steps: int) -> None:
        """A save of so many committed steps begins."""
        self._open, self._owed, self._next = True, False, -1
        self._look = steps + min(LONGEST, 1 << min(self._failures, 10))

    def word(self, steps: int, *, due: bool, busy: bool, failed: bool) -> tuple[bool, bool]:
        """What this worker says in the vote after so many committed steps: whether it wants a save `AHEAD` of them, and
        whether one is under way or about to be. due: one is by then; busy: one is under way here; failed: the last one
        came to nothing."""
        if self._open and not busy:
            self._open, self._owed = False, self._owed or failed
            self._failures = self._failures + 1 if failed else 0
            self._look = self._look if failed else 0
        return due or (self._owed and steps + AHEAD >= self._look), busy or self._next > steps

    def heard(self, steps: int, *, wanted: bool, busy: bool) -> None:
        """What all said in the vote after so many steps."""
        if wanted and not busy:
            self._next = steps + AHEAD
        self._owed |= wanted and busy

    def now(self, steps: int) -> bool:
        """Whether all save after so many steps; asked once."""
        if self._next != steps:
            return False
        self._next = -1
        return True
