"""What stores say of input files: which a search finds and what is in its way, and how the bytes of one are had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shoal_core.errors import UserError
from shoal_data.retry import ATTEMPTS

__all__ = ["Found", "Listing", "Problem", "Ranges", "refuse"]

_NAMED = 5  # names in one message


@dataclass(frozen=True)
class Found:
    """A file where it lies.

    Attributes:
        path: as `open_file` takes it.
        size: in bytes.
        stamp: what tells its content from what it was before or is later: its size, and its time or its etag.
        identity: the same for all names of one file.
        format: how it is read, where its name does not say it.
    """

    path: str
    size: int
    stamp: str
    identity: str = ""
    format: str = ""


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


class Ranges(NamedTuple):
    """How the bytes of one file are had.

    Attributes:
        size: in bytes.
        fetch: (first, last) -> the bytes between; raises `MayPass` for what may be had at the next attempt.
        at_once: bytes asked for in one go at most.
        ahead: bytes asked for at least where reading goes on where it stopped.
        attempts: how often a range is asked for.
        closes: called when nobody reads the file any more.
    """

    size: int
    fetch: Callable[[int, int], bytes]
    at_once: int = 64 << 20
    ahead: int = 0
    attempts: int = ATTEMPTS
    closes: Callable[[], None] = lambda: None


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
