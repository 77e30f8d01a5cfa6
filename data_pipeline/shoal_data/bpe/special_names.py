"""Special tokens that a tokenizer is to be trained with: names that no text is ever cut into, and ids that fit."""

from __future__ import annotations

from collections.abc import Mapping

from shoal_core.errors import UserError
from shoal_data.tokenizer.byte_level import spell
from shoal_data.tokenizer.patterns import pre_tokenizer
from shoal_data.tokenizer.rules import stays_whole

__all__ = ["can_be_spelled", "check_special"]


def check_special(special: Mapping[str, int], pattern: str, vocab_size: int) -> None:
    """Check the special tokens (name -> id) of a tokenizer that cuts text by `pattern`.

    Raises:
        UserError: an id is out of range or given twice, or merges could learn a name from plain text.
    """
    ids = list(special.values())
    if len(set(ids)) < len(ids) or not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise UserError(
            f"--special: the ids {ids} must differ and be whole numbers in 0 .. {vocab_size - 1}",
            "mend --special NAME=ID",
        )
    for name in special:
        if not name:
            raise UserError("--special: a name is empty", "write NAME=ID")
        if can_be_spelled(name, pattern):
            raise UserError(
                f"--special {name!r}: plain text can spell it, so that a document could forge it",
                f"choose a name that no text is cut into, such as <|{name.strip('<|>') or 'name'}|>",
            )


def can_be_spelled(name: str, pattern: str) -> bool:
    """Whether merges within the pieces that `pattern` cuts text into can make the vocabulary entry `name`."""
    text = spell(name)
    if len(text) < 2:
        return text != b""
    inner = _characters(text)
    if inner is None:
        return False
    cut_off = len(inner.encode()) < len(text)  # it begins or ends within a character, whose kind is not known
    return cut_off or stays_whole(inner, pre_tokenizer(pattern), inside=True)


def _characters(part: bytes) -> str | None:
    """The whole characters in a stretch of bytes of a text; None if no text holds such a stretch."""
    begin = 0
    while begin < min(3, len(part)) and part[begin] & 0xC0 == 0x80:
        begin += 1
    for end in range(len(part), max(begin, len(part) - 3) - 1, -1):
        cut = part[end:]
        if cut and not (cut[0] >= 0xC2 and all(byte & 0xC0 == 0x80 for byte in cut[1:])):
            continue
        try:
            return part[begin:end].decode()
        except UnicodeDecodeError:
            continue
    return None
