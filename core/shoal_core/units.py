"""Bytes and times as people read them. Pure."""

from __future__ import annotations

__all__ = ["duration", "size"]


def size(count: float) -> str:
    """Bytes in the largest unit of which there is one.

    >>> size(900), size(38_500_000), size(150e6), size(4.7e9), size(2e12)
    ('900 bytes', '38.5 MB', '150.0 MB', '4.7 GB', '2.0 TB')
    """
    for unit, word in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {word}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """In the two largest units.

    >>> duration(9.0), duration(75), duration(7260), duration(200_000)
    ('9 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    whole = round(seconds)
    for unit, word, inner, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {word} {whole % unit // inner} {small}"
    return f"{whole} s"
