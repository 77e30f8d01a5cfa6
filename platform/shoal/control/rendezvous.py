"""Where workers meet and exchange the addresses of a group's members: keys and values by membership, over lifelines.

A membership has a subject ("generation", or "cell/3") and a number; of each subject only the newest is open, and only
its members are answered. What is kept of one ends with it. Pure: what is to be said to whom is returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KEYS", "VALUES", "WORDS", "Answers", "Rendezvous"]

WORDS = frozenset({"put", "want", "meet", "turn"})
"""Types of the messages that are for the rendezvous."""
KEYS, VALUES = 100_000, 64 << 20
"""Most keys of a membership, and bytes of all its values."""

Answers = list[tuple[str, dict[str, Any]]]
"""(worker, message), in the order in which they are to be said."""


@dataclass
class Wish:
    """A worker asks for the values of some keys, and gets them when all are there."""

    worker: str
    id: int
    keys: tuple[str, ...]
    missing: set[str]


@dataclass
class Table:
    """Who has come to one meeting, and with which question; `go`: what was decided, None before."""

    size: int
    came: dict[str, int] = field(default_factory=dict)
    go: bool | None = None


@dataclass
class Room:
    """All of one membership."""

    scope: str
    members: frozenset[str]
    values: dict[str, str] = field(default_factory=dict)
    size: int = 0
    wishes: list[Wish] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)


class Rendezvous:
    """Answers members of the memberships that are open.

    - `put` (scope, key, value): keep a value; nothing is answered.
    - `want` (scope, keys, id): `values`, once all of these keys are there.
    - `meet` (scope, key, size, id): wait for `size` members at `key`: `met` with `go` for all of them, decided once:
      true when all have come, false when one turned round before.
    - `turn` (scope, key, size, id): the worker would turn round: `met`; if nothing was decided before, this decides.

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
        waiting = [(wish.worker, wish.id) for wish in left.wishes]
        waiting += [pair for table in left.tables.values() if table.go is None for pair in table.came.items()]
        return [(worker, {"type": "closed", "id": id}) for worker, id in waiting]

    def hear(self, worker: str, message: Mapping[str, Any]) -> Answers:
        """A worker's word.

        Raises:
            KeyError, TypeError, ValueError: it makes no sense, or holds more than may be kept.
        """
        scope, kind = str(message["scope"]), message["type"]
        room = self._rooms.get(scope.rpartition("/")[0])
        if room is None or room.scope != scope or worker not in room.members:
            over = {"type": "met", "go": False} if kind == "turn" else {"type": "closed"}
            return [] if kind == "put" else [(worker, over | {"id": message["id"]})]
        if kind == "put":
            return put(room, str(message["key"]), str(message["value"]))
        if kind == "want":
            return want(room, worker, int(message["id"]), tuple(map(str, message["keys"])))
        table = room.tables.setdefault(str(message["key"]), Table(int(message["size"])))
        return meet(table, worker, int(message["id"]), turns=kind == "turn")


def put(room: Room, key: str, value: str) -> Answers:
    grown = len(value) - len(room.values.get(key, ""))
    if (key not in room.values and len(room.values) >= KEYS) or room.size + grown > VALUES:
        raise ValueError(f"{room.scope}: too many or too large values at the rendezvous, the last for {key[:100]}")
    room.size += grown
    room.values[key] = value
    for wish in room.wishes:
        wish.missing.discard(key)
    due = [wish for wish in room.wishes if not wish.missing]
    if due:
        room.wishes = [wish for wish in room.wishes if wish.missing]
    return [values(room, wish) for wish in due]


def want(room: Room, worker: str, id: int, keys: tuple[str, ...]) -> Answers:
    wish = Wish(worker, id, keys, {key for key in keys if key not in room.values})
    if wish.missing:
        room.wishes.append(wish)
        return []
    return [values(room, wish)]


def values(room: Room, wish: Wish) -> tuple[str, dict[str, Any]]:
    return wish.worker, {"type": "values", "id": wish.id, "values": [room.values[key] for key in wish.keys]}


def meet(table: Table, worker: str, id: int, *, turns: bool) -> Answers:
    """Come to a meeting, or turn round there; the first that completes it, or turns round, decides for all."""
    waiting = {} if table.go is not None else dict(table.came)
    table.came[worker] = id
    waiting[worker] = id
    if table.go is None and turns:
        table.go = False
    elif table.go is None and len(table.came) == table.size:
        table.go = True
    if table.go is None:
        return []
    return [(who, {"type": "met", "id": its, "go": table.go}) for who, its in waiting.items()]
