"""Byte-level BPE's characters: the one that stands for each byte in a vocabulary, and the bytes that a name spells."""

from __future__ import annotations

from collections import defaultdict

__all__ = ["byte_of_character", "character_of_byte", "spell"]


def byte_of_character() -> dict[str, int]:
    """Character -> byte (GPT-2's table: printable Latin-1 stands for itself, the rest from U+0100)."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in itself}
    for number, byte in enumerate(sorted(set(range(256)) - set(itself))):
        table[chr(256 + number)] = byte
    return table


def character_of_byte() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    return {byte: name for name, byte in byte_of_character().items()}


_OUTSIDE = 0xFFFF  # no Latin-1 character: what it stands in cannot be encoded as bytes
_TABLE = defaultdict(lambda: _OUTSIDE, {ord(name): byte for name, byte in byte_of_character().items()})


def spell(name: str) -> bytes:
    """The bytes that a vocabulary's entry stands for; empty if a character is in no byte-level alphabet."""
    try:
        return name.translate(_TABLE).encode("latin-1")
    except UnicodeEncodeError:
        return b""
