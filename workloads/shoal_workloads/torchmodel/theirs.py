"""Errors in a user's code, told with the place in it, before any worker starts."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal_core.errors import UserError

__all__ = ["their_code"]

OURS = Path(__file__).parent


@contextmanager
def their_code(what: str, remedy: str = "mend it there") -> Iterator[None]:
    """Around a call of a user's method, `what`.

    Raises:
        UserError: it raised; with the last line of it that is neither Shoal's nor an installed package's.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} raised {type(error).__name__}: {error}{place_of(error)}", remedy) from error


def place_of(error: BaseException) -> str:
    """The line to look at, as ` (FILE, line N, in F: TEXT)`."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if Path(frame.filename).parent != OURS]
    own = [frame for frame in outside if "site-packages" not in frame.filename and "<frozen" not in frame.filename]
    for frame in reversed(own or outside):
        return f"\n  {frame.filename}, line {frame.lineno}, in {frame.name}: {frame.line}"
    return ""
