"""How the members of a membership meet and exchange addresses: what they ask, and the answers.

`scope`: the membership, "generation/NUMBER" or "cell/INDEX/ATTEMPT". `id`: the question's; its answer has the same.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Answer", "Closed", "Meet", "Met", "Put", "Question", "Turn", "Values", "Want"]


@dataclass(frozen=True)
class Put:
    """Keep a value; nothing is answered."""

    scope: str
    key: str
    value: str


@dataclass(frozen=True)
class Want:
    """Give these values once all are there: `Values`."""

    scope: str
    id: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Meet:
    """Come to a meeting of `size` members: `Met`. Before that, keep `puts`, of (key, value); if all go on, give the
    values of `keys` with the answer."""

    scope: str
    id: int
    key: str
    size: int
    keys: tuple[str, ...] = ()
    puts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Turn:
    """Turn round at a meeting, unless all have come: `Met`."""

    scope: str
    id: int
    key: str
    size: int


@dataclass(frozen=True)
class Values:
    id: int
    values: tuple[str, ...]


@dataclass(frozen=True)
class Met:
    """`go`: whether all go on, or none. `values`: (key, value) of those that were wanted and are there."""

    id: int
    go: bool
    values: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Closed:
    """The membership that was asked in is over."""

    id: int


Question = Put | Want | Meet | Turn
Answer = Values | Met | Closed
