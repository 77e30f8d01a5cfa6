"""Globs over paths, the same for every store: `*` stays within a folder, `**` is folders of any depth."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

__all__ = ["Match", "fixed_part", "has_magic", "is_side_file", "match_name", "match_path"]

#: what matching says: the name is taken, is passed over for being a side file, or does not match
Match = str

_SIDE_FILES = frozenset({"_SUCCESS", "_metadata", "_common_metadata", "_delta_log", "_spark_metadata", "_temporary"})
_SIDE_BEGINNINGS = (".", "_committed_", "_started_")


def has_magic(text: str) -> bool:
    """Whether there is anything to expand in it."""
    return any(special in text for special in "*?[")


def is_side_file(name: str) -> bool:
    """Whether a file or folder holds what systems note beside the data: dot-files, Spark's marks and sums."""
    return name in _SIDE_FILES or name.startswith(_SIDE_BEGINNINGS) or name.endswith(".crc")


def match_name(name: str, wanted: str) -> Match:
    """Match one name with one component of a pattern; as it is written it always matches, brackets or not.

    >>> match_name("a.txt", "*.txt"), match_name(".a.txt", "*.txt"), match_name(".a.txt", ".*"), match_name("b", "a")
    ('taken', 'passed', 'taken', '')
    >>> match_name("d[1]", "d[1]"), match_name("d1", "d[1]")
    ('taken', 'taken')
    """
    if name == wanted:
        return "taken"
    if not fnmatch.fnmatchcase(name, "*" if wanted == "**" else wanted):
        return ""
    meant = wanted.startswith((".", "_")) and wanted[0] == name[:1]
    return "passed" if is_side_file(name) and not meant else "taken"


def match_path(names: Sequence[str], wanted: Sequence[str]) -> Match:
    """Match the components of a path with those of a pattern; what lies in a side folder does not match.

    >>> match_path(["in", "a", "b", "x"], ["in", "**", "x"]), match_path(["in", "x"], ["in", "**", "x"])
    ('taken', 'taken')
    >>> match_path(["in", "_SUCCESS"], ["in", "*"]), match_path(["in", "a", "x"], ["in", "*"])
    ('passed', '')
    """
    # what the components of `wanted` before each place can have used up, name by name
    folders, last = names[:-1], names[-1]
    reached = _skip({0}, wanted)
    for name in folders:
        further = set()
        for place in reached:
            if place < len(wanted) and match_name(name, wanted[place]) == "taken":
                further.add(place if wanted[place] == "**" else place + 1)
        reached = _skip(further, wanted)
    ends = {place for place in reached if place == len(wanted) - 1}
    if wanted and wanted[-1] == "**":
        ends |= {place for place in reached if place == len(wanted)}
    found = {match_name(last, wanted[-1]) for _ in ends}
    return next((match for match in ("taken", "passed") if match in found), "")


def _skip(places: set[int], wanted: Sequence[str]) -> set[int]:
    """`places`, and those after a `**` that stands for no folder."""
    reached = set(places)
    for place in sorted(places):
        while place < len(wanted) and wanted[place] == "**":
            place += 1
            reached.add(place)
    return reached


def fixed_part(pattern: str) -> str:
    """The beginning of a pattern that all its matches share.

    >>> fixed_part("in/web-*.jsonl")
    'in/web-'
    """
    for special in "*?[":
        pattern = pattern.partition(special)[0]
    return pattern
