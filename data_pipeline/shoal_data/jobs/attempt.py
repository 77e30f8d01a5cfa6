"""One attempt at a part: what became of it, or why it failed, as plain values that cross threads and processes."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from shoal_core.errors import StoreError, UserError
from shoal_data.files import explain
from shoal_data.sources.parts import Part

__all__ = ["BUG", "INPUT", "SKIPPED", "STORE", "Failures", "Work", "attempt", "files_of"]

#: what a task does: (part, settings) -> figures, with at least `bytes` of text and a `note`'s parts as plain numbers
Work = Callable[[Part, dict[str, Any]], dict[str, int]]

#: how a part can fail: the store did not give its bytes; something else that is the user's to mend; a fault of this
#: software; or the job was ended before it began
STORE, INPUT, BUG, SKIPPED = "store", "input", "bug", "skipped"

_ENOUGH = 8  # parts that may fail for their store's sake before no other begins


def attempt(
    work: Work, part: Part, settings: dict[str, Any], stopped: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """The figures of `work`, with `part` (its id) and `failure` (empty); or `failure`, `problem` and `remedy`."""
    if stopped():
        return {"part": part.id, "failure": SKIPPED}
    kind = INPUT
    found: UserError
    try:
        return {"part": part.id, "failure": "", **work(part, settings)}
    except StoreError as error:
        kind, found = STORE, error
    except UserError as error:
        found = error
    except OSError as error:
        found = explain(error, error.filename or files_of(part))
    except MemoryError:
        found = UserError(f"{files_of(part)}: this part does not fit in memory", "give a smaller --part-bytes")
    except Exception:
        kind, found = BUG, UserError(f"{files_of(part)}:\n{traceback.format_exc()}")
    return {"part": part.id, "failure": kind, "problem": found.problem, "remedy": found.remedy}


def files_of(part: Part) -> str:
    """The part's files, as a message names them."""
    first, *others = dict.fromkeys(piece.path for piece in part.pieces)
    return f"{first or 'intermediate results'}{f' and {len(others)} more' if others else ''}"


class Failures:
    """The parts of a run that failed, and what is said of them in the end."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """A failed attempt."""
        self._rows.append(row)

    @property
    def enough(self) -> bool:
        """Whether no other part should begin. What a store did not give may concern one file alone; the rest, such as
        a full disk or input that may not be broken, concerns all."""
        return len(self._rows) >= _ENOUGH or any(row["failure"] != STORE for row in self._rows)

    def check(self) -> None:
        """Raise the first failure, if there is one, those of a store before all others.

        Raises:
            StoreError, UserError: of that kind; it says how many parts failed.
            RuntimeError: a fault of this software, with its traceback.
        """
        if not self._rows:
            return
        rank = [BUG, STORE, INPUT]
        first = min(self._rows, key=lambda row: (rank.index(row["failure"]), row["part"]))
        if first["failure"] == BUG:
            raise RuntimeError(first["problem"])
        more = f" (the first of {len(self._rows)} parts that failed)" if len(self._rows) > 1 else ""
        kind = StoreError if first["failure"] == STORE else UserError
        raise kind(first["problem"] + more, first["remedy"])
