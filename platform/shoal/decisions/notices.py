"""What of a run is told to people outside (`notify` of the job), when, and in how many messages. Pure.

The first thing that happens is told at once; what happens in the `wait` after it is gathered into one message, with how
often each kind of thing was. What could not be told waits for the next message. The end of a run waits for nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["TOPICS", "Gathered", "Message", "checkpoint_overdue", "told_before", "topic_of"]

TOPICS: dict[str, tuple[str, ...]] = {
    "run_ended": ("run_ended",),
    "recovery": ("recovery", "reshaped", "rolled_back"),
    "no_progress": ("no_progress",),
    "nodes_set_aside": ("node_aside",),
    "checkpoint_overdue": ("checkpoint_overdue",),
}
"""What one may be told of, and the kinds of the journal's lines that are it."""
LINES = 20
"""Lines of the journal that a message holds at most, the newest; all are counted."""
LONGEST = 3600.0
"""Seconds between two tries of a channel that fails again and again."""
TWICE = 2
"""Intervals without a whole checkpoint after which one is overdue."""
HOUR = 3600.0
"""Seconds for the same, where intervals follow from what saves cost (`checkpoint.every: auto`)."""
Event = Mapping[str, Any]
_TOPIC_OF = {kind: topic for topic, kinds in TOPICS.items() for kind in kinds}


def topic_of(event: Event) -> str | None:
    """What a line of the journal is told as; None: nobody outside is told of it."""
    return _TOPIC_OF.get(str(event.get("kind")))


@dataclass(frozen=True)
class Message:
    """What is told at once. `counts`: how often each topic came, `events`: the newest lines of the journal, `number`:
    how many of the session's lines the channel has told of when this is told."""

    counts: Mapping[str, int]
    events: tuple[Event, ...]
    number: int


@dataclass
class Gathered:
    """What one channel has to tell. `topics`: of what; `wait`: seconds between two messages. Times are of any clock
    that only goes on."""

    topics: frozenset[str]
    wait: float
    number: int = 0
    """Lines of the session that were taken."""
    _skip: int = 0
    _counts: Counter[str] = field(default_factory=Counter)
    _events: deque[Event] = field(default_factory=lambda: deque(maxlen=LINES))
    _next: float = float("-inf")
    _failures: int = 0

    def told(self, number: int) -> None:
        """So many of the session's lines were told before, by a controller that is gone."""
        self._skip = number

    def take(self, event: Event) -> None:
        """A line of the journal."""
        topic = topic_of(event)
        if topic not in self.topics:
            return
        self.number += 1
        if self.number > self._skip:
            self._counts[topic] += 1
            self._events.append(event)

    def due(self, now: float) -> bool:
        """Whether something is to be told now."""
        return bool(self._counts) and (now >= self._next or bool(self._counts["run_ended"]))

    @property
    def waiting(self) -> int:
        """Things that were not told yet."""
        return sum(self._counts.values())

    def message(self, now: float) -> Message | None:
        """What is to be told now, which the caller does; None: nothing."""
        if not self._counts:
            return None
        found = Message(dict(self._counts), tuple(self._events), self.number)
        self._counts.clear()
        self._events.clear()
        self._next = now + self.wait
        return found

    def done(self) -> None:
        """A message was told."""
        self._failures = 0

    def failed(self, message: Message, now: float) -> None:
        """A message was not told: it goes with the next, after a pause that grows with every failure in a row."""
        later = list(self._events)
        self._counts.update(message.counts)
        self._events.clear()
        self._events.extend([*message.events, *later])
        self._failures += 1
        self._next = now + max(self.wait, min(LONGEST, self.wait * 2 ** min(self._failures, 20)))


def told_before(events: Sequence[Event]) -> tuple[Sequence[Event], dict[str, int]]:
    """Of a journal: the lines of its last session, and how many of those that are told of each channel had told."""
    start = max((place for place, event in enumerate(events) if event["kind"] == "run_started"), default=0)
    session = events[start:]
    return session, {str(e.get("channel")): int(e.get("events") or 0) for e in session if e["kind"] == "notified"}


def checkpoint_overdue(every: int | Literal["auto"], limit: float | None, steps: int, seconds: float) -> bool:
    """Whether a checkpoint should have become whole since the last one (or the session's beginning), `steps` committed
    steps and `seconds` ago. every: steps between two, as the job has it; limit: seconds, if the job says so."""
    if limit is None and every == "auto":
        limit = HOUR
    if limit is not None:
        return seconds > limit
    return every != "auto" and every > 0 and steps >= TWICE * every
