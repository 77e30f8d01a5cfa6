"""What a search for input files gives: files, and what is in their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal_core.errors import UserError

__all__ = ["Found", "Listing", "Problem", "refuse"]

_NAMED = 5  # names in one message


@dataclass(frozen=True)
class Found:
    """A file where it lies.

    Attributes:
        path: as `open_file` takes it.
        size: in bytes.
        stamp: what tells its content from what it was before or is later: its size, and its time or its etag.
        identity: the same for all names of one file.
    """

    path: str
    size: int
    stamp: str
    identity: str = ""


@dataclass(frozen=True)
class Problem:
    """Something that was asked for and cannot be read: which, why, and what to do about it."""

    path: str
    cause: str
    remedy: str


@dataclass
class Listing:
    """What a pattern names.

    Attributes:
        files: sorted by path.
        problems: matches that cannot be read.
        folders: matches that are folders, which are not entered.
        passed: how many side files match but for being such (see `globs.is_side_file`), hidden ones included.
        dangling: how many links lead nowhere where a folder could have matched.
    """

    files: list[Found] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed: int = 0
    dangling: int = 0


def refuse(problems: Sequence[Problem]) -> None:
    """Raise an UserError that names some of `problems`, if there are any; names that do not print are escaped."""
    if not problems:
        return
    said = [f"{_printable(problem.path)} ({problem.cause})" for problem in problems[:_NAMED]]
    if len(problems) > _NAMED:
        said.append(f"and {len(problems) - _NAMED:,} more")
    remedies = dict.fromkeys(problem.remedy for problem in problems)
    raise UserError(
        f"{len(problems):,} of the files that --input names cannot be taken: " + ", ".join(said),
        "; ".join([*remedies][:_NAMED]) + "; or write a pattern that leaves them out",
    )


def _printable(path: str) -> str:
    return path if path.isprintable() else ascii(path)
