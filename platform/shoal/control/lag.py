"""How far a record on a store is behind, and when the next round of its press is due, by whatever clock. Pure.

What a round publishes is the record as it was when the round began. The next one begins `PERIOD` after that, or at once
if it took longer, so that with rounds of at most `took` seconds a reader finds what is `lasting(took)` old at most.
"""

from __future__ import annotations

__all__ = ["BOUND", "PERIOD", "Lag", "lasting", "pause_after"]

BOUND = 5.0
"""Seconds that a record is behind at most while its store takes a round in no more than 2.3 s."""
PERIOD = 2.0
"""Seconds from one round's beginning to the next."""
REST = 0.2
"""Seconds between two rounds at least."""


def pause_after(took: float) -> float:
    """Seconds from the end of a round that took so long to the next."""
    return max(PERIOD - took, REST)


def lasting(took: float) -> float:
    """Seconds that a record is behind at most while every round takes so long."""
    return took + pause_after(took) + took


class Lag:
    """Of one record, since this was made at `now`. `most`: seconds that it was behind at most."""

    def __init__(self, now: float) -> None:
        self._as_of = now
        self.most = 0.0

    def published(self, began: float, now: float) -> None:
        """The record is on its store as it was when the round of then began."""
        self.most = max(self.most, self.behind(now))
        self._as_of = began

    def behind(self, now: float) -> float:
        """Seconds by which what is on the store is old."""
        return now - self._as_of
