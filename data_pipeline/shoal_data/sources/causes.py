"""What was left out and why, in few words: the quarantine's lines by cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["common_causes", "extent", "plural"]

_SHOWN = 3


def common_causes(entries: Iterable[Mapping[str, Any]]) -> str:
    """The most common causes and how much each cost; empty if nothing was left out.

    Causes that differ by numbers alone count as one, told by its first.

    >>> common_causes([{"file": "a", "row": 3, "rows": 1, "cause": "invalid UTF-8 at byte 7"}] * 2)
    'invalid UTF-8 at byte 7: 2 rows in 1 file'
    """
    first: dict[str, str] = {}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        kind = re.sub(r"\d+", "0", entry["cause"])
        first.setdefault(kind, entry["cause"])
        groups.setdefault(kind, []).append(entry)
    common = sorted(groups, key=lambda kind: -len(groups[kind]))
    said = [f"{first[kind]}: {extent(groups[kind])}" for kind in common[:_SHOWN]]
    if len(common) > _SHOWN:
        said.append(plural(len(common) - _SHOWN, "other cause"))
    return "; ".join(said)


def extent(entries: Iterable[Mapping[str, Any]]) -> str:
    """How much the entries of a quarantine stand for: rows where they are counted, else files.

    >>> extent([{"file": "a", "row": None, "rows": None}, {"file": "b", "row": 0, "rows": 12}])
    '12 rows in 1 file and 1 file in whole or from some row on'
    """
    rows = 0
    of_rows: set[str] = set()
    others: set[str] = set()
    for entry in entries:
        # one row if it is named and its number is not (older records)
        count = entry.get("rows", 1 if entry["row"] is not None else None)
        rows += count or 0
        (others if count is None else of_rows).add(entry["file"])
    counted = f"{plural(rows, 'row')} in {plural(len(of_rows), 'file')}"
    if not others:
        return counted
    uncounted = plural(len(others), "file")
    return f"{counted} and {uncounted} in whole or from some row on" if of_rows else uncounted


def plural(count: int, what: str) -> str:
    """
    >>> plural(1, "file"), plural(1200, "row")
    ('1 file', '1,200 rows')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"
