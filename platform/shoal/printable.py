"""The one filter for text that others wrote, before it reaches a terminal, a page or a tracker.

Documents, file and node names, error texts, records and servers' answers may hold terminal escapes, characters that
reverse the direction of writing or are invisible, and halves of characters that no encoding takes. All of them are
shown as escapes (`\\x1b`, `\\u202e`, `\\ud800`), so that nothing happens and nothing is hidden.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

__all__ = ["figure", "printable", "printable_values"]

_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters, halves of surrogate pairs, line and paragraph separators."""
_JOINERS = "\u200c\u200d"  # part of how some languages, and emoji, are written


def printable(text: object, *, lines: bool = False) -> str:
    """`str(text)` with everything that is not to be seen shown as an escape; `lines`: line ends and tabs stay."""
    words = str(text)
    if words.isprintable():
        return words
    kept = _JOINERS + ("\n\t" if lines else "")
    return "".join(
        character if character in kept or unicodedata.category(character) not in _ESCAPED else _escape(character)
        for character in words
    )


def printable_values(value: Any) -> Any:
    """JSON of any depth with all its texts, keys too, made printable; line ends and tabs stay."""
    if isinstance(value, str):
        return printable(value, lines=True)
    if isinstance(value, Mapping):
        return {printable_values(key): printable_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(item) for item in value]
    return value


def _escape(character: str) -> str:
    """As Python writes it in a literal: `\\n`, `\\x1b`, `\\u202e`."""
    return character.encode("unicode_escape", "surrogatepass").decode()


def figure(value: float | None, form: str) -> str:
    """A number in a format of Python's; a dash where there is none."""
    return "-" if value is None else format(value, form)
