"""Where workers meet and exchange the addresses of a group's members: keys and values by membership, over lifelines.

A membership has a subject ("generation", or "cell/3") and a number; of each subject only the newest is open, and only
its members are answered. What is kept of one ends with it. Pure: what is to be said to whom is returned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from shoal.protocol.rendezvous import Answer, Closed, Meet, Met, Put, Question, Turn, Values, Want

__all__ = ["KEYS", "VALUES", "Answers", "Rendezvous"]

KEYS, VALUES = 100_000, 64 << 20
"""Most keys of a membership, and bytes of all its values."""

Answers = Iterable[tuple[str, Answer]]
"""(worker, answer), in the order in which they are to be said. Those of a meeting are made as they are asked for: all
workers of a run may have come to it."""


@dataclass
class Waiter:
    """A worker that asked for the values of some keys; it gets them when all are there."""

    worker: str
    id: int
    keys: tuple[str, ...]
    missing: set[str]


@dataclass
class Table:
    """Who has come to one meeting, and with which question; `go`: what was decided, None before."""

    size: int
    came: dict[str, Meet | Turn] = field(default_factory=dict)
    go: bool | None = None


@dataclass
class Room:
    """All of one membership."""

    scope: str
    members: frozenset[str]
    values: dict[str, str] = field(default_factory=dict)
    size: int = 0
    waiters: dict[str, list[Waiter]] = field(default_factory=dict)
    """Who waits for each key that is missing."""
    tables: dict[str, Table] = field(default_factory=dict)


class Rendezvous:
    """Answers members of the memberships that are open. Who comes to a meeting waits until all have come, or one turns
    round: whichever is first is decided for all of them, once.

    Whoever asks in a membership that is not open, or not its own, is answered `closed` (who turns round there: that
    nobody goes on); so are all who still wait in one when the next of its subject is opened.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}

    def open(self, subject: str, number: int, members: Iterable[str]) -> Answers:
        """Let a membership meet, and close the one before it of the same subject. Its scope is `subject/number`."""
        left = self._rooms.pop(subject, None)
        self._rooms[subject] = Room(f"{subject}/{number}", frozenset(members))
        if left is None:
            return []
        waiting = list(dict.fromkeys((one.worker, one.id) for waiters in left.waiters.values() for one in waiters))
        tables = [table for table in left.tables.values() if table.go is None]
        waiting += [(worker, asked.id) for table in tables for worker, asked in table.came.items()]
        return [(worker, Closed(id)) for worker, id in waiting]

    def hear(self, worker: str, asked: Question) -> Answers:
        """A worker's question.

        Raises:
            ValueError: it holds more than may be kept.
        """
        room = self._rooms.get(asked.scope.rpartition("/")[0])
        if room is None or room.scope != asked.scope or worker not in room.members:
            match asked:
                case Put():
                    return []
                case Turn():
                    return [(worker, Met(asked.id, go=False))]
                case _:
                    return [(worker, Closed(asked.id))]
        match asked:
            case Put(_, key, value):
                return put(room, key, value)
            case Want(_, id, keys):
                return want(room, worker, id, keys)
            case Meet():
                due = [answer for key, value in asked.puts for answer in put(room, key, value)]
                return chain(due, meet(room, worker, asked))
            case Turn():
                return meet(room, worker, asked)


def put(room: Room, key: str, value: str) -> Answers:
    grown = len(value) - len(room.values.get(key, ""))
    if (key not in room.values and len(room.values) >= KEYS) or room.size + grown > VALUES:
        raise ValueError(f"{room.scope}: too many or too large values at the rendezvous, the last for {key[:100]}")
    room.size += grown
    room.values[key] = value
    found = room.waiters.pop(key, [])
    for waiter in found:
        waiter.missing.discard(key)
    return [values(room, waiter) for waiter in found if not waiter.missing]


def want(room: Room, worker: str, id: int, keys: tuple[str, ...]) -> Answers:
    waiter = Waiter(worker, id, keys, {key for key in keys if key not in room.values})
    for key in waiter.missing:
        room.waiters.setdefault(key, []).append(waiter)
    return [] if waiter.missing else [values(room, waiter)]


def values(room: Room, waiter: Waiter) -> tuple[str, Answer]:
    return waiter.worker, Values(waiter.id, tuple(room.values[key] for key in waiter.keys))


def meet(room: Room, worker: str, asked: Meet | Turn) -> Answers:
    """Come to a meeting, or turn round there; the first that completes it, or turns round, decides for all."""
    table = room.tables.setdefault(asked.key, Table(asked.size))
    if table.go is not None:
        return [(worker, met(room, asked, go=table.go))]
    table.came[worker] = asked
    if isinstance(asked, Turn):
        table.go = False
    elif len(table.came) == table.size:
        table.go = True
    else:
        return []
    go = table.go
    return ((who, met(room, its, go=go)) for who, its in table.came.items())


def met(room: Room, asked: Meet | Turn, *, go: bool) -> Met:
    keys = asked.keys if go and isinstance(asked, Meet) else ()
    return Met(asked.id, go, tuple((key, room.values[key]) for key in keys if key in room.values))
