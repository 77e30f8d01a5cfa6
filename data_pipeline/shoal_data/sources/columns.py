"""What the readers of formats give: columns as they come out of a file, and what of it is lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Columns", "Quarantined", "words"]


@dataclass(frozen=True)
class Columns:
    """Rows of one file, in its order, of which nobody has looked at the values.

    Attributes:
        text: strings, bytes, or what Arrow casts to strings.
        lang: language tags; what is no text there is as good as no tag. None: there are none.
        row: row number in the file, 0-based: (n,).
        missing: what a null in `text` means.
        origin: what of the file they come from, for a message.
    """

    text: pa.ChunkedArray
    lang: pa.ChunkedArray | None
    row: npt.NDArray[np.int64]
    missing: str
    origin: str


@dataclass(frozen=True)
class Quarantined:
    """Something that was not taken in, and why.

    Attributes:
        row: the first row that is lost, 0-based; None: it is not known, or it is the whole file.
        rows: how many rows are lost; None: it is not known.
    """

    file: str
    row: int | None
    cause: str
    rows: int | None = 1


def words(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
