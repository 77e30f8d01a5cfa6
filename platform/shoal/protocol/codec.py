"""A message to bytes and back: a line of the class's name and its fields as JSON. Data only; nothing is ever unpickled.

What comes is checked against the class whole, field by field and strictly: a line is a message or is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, cast, get_args

from pydantic import ConfigDict, TypeAdapter

from shoal.protocol.copying import Coming, Enter, Keep, Look, Missing, Ranges, Whole
from shoal.protocol.greeting import Challenge, Hello, Refused, Welcome
from shoal.protocol.orders import Order
from shoal.protocol.said import Said

__all__ = ["LINE_LIMIT", "Message", "copying", "decode", "encode", "encode_each", "order", "said"]

LINE_LIMIT = 16 * 1024 * 1024
"""Longest message in bytes; a longer one closes the connection."""

Copying = Challenge | Keep | Enter | Look | Ranges | Coming | Whole | Missing | Refused
Message = Said | Order | Challenge | Hello | Welcome | Refused | Copying
STRICT = ConfigDict(strict=True, extra="forbid")


def _readers(union: Any) -> dict[bytes, TypeAdapter[Any]]:
    """How each class of a union is read, by its name."""
    readers = {}
    for kind in get_args(union):
        kind.__pydantic_config__ = STRICT
        readers[kind.__name__.encode()] = TypeAdapter(kind)
    return readers


SAID, ORDERS, GREETINGS = _readers(Said), _readers(Order), _readers(Challenge | Hello | Welcome | Refused)
COPYING = _readers(Copying)


def encode(message: Message) -> bytes:
    """The line of a message; halves of characters, which no encoding takes, are replaced.

    Raises:
        TypeError: a field holds what is no JSON.
    """
    return f"{type(message).__name__} {_json(vars(message))}\n".encode(errors="replace")


def encode_each(message: Message, field: str, values: Iterable[int]) -> Iterator[bytes]:
    """The lines of messages that differ in one whole number: what they share is encoded once."""
    shared = {name: value for name, value in vars(message).items() if name != field}
    head = f'{type(message).__name__} {_json(shared)[:-1]},"{field}":'
    for value in values:
        yield f"{head}{value}}}\n".encode(errors="replace")


def _fields(value: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"a {type(value).__name__} in a message")
    return vars(value)


_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=_fields).encode


def said(line: bytes) -> Said:
    """What a worker says in a line. Raises ValueError: it is no message of a worker."""
    return cast(Said, decode(line, SAID))


def order(line: bytes) -> Order:
    """What a worker is told in a line. Raises ValueError: it is no order."""
    return cast(Order, decode(line, ORDERS))


def copying(line: bytes) -> Copying:
    """What is said in a line about a copy. Raises ValueError: it is nothing of that."""
    return cast(Copying, decode(line, COPYING))


def decode(line: bytes, known: dict[bytes, TypeAdapter[Any]] = GREETINGS) -> Any:
    """The message in a line, of one of the `known` classes: by default of a greeting's.

    Raises:
        ValueError: it is none of them.
    """
    name, _, fields = line.partition(b" ")
    reader = known.get(name)
    if reader is None:
        raise ValueError(f"no message is called {name[:40]!r}")
    return reader.validate_json(fields)
