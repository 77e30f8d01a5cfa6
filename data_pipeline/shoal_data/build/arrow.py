"""Arrow columns as NumPy arrays, without copying."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["text_buffers"]


def text_buffers(column: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets (n + 1,) and bytes of a LargeString or LargeBinary column; read-only."""
    _, offsets, values = column.buffers()
    first = column.offset
    content = np.frombuffer(values, np.uint8) if values is not None and values.size else np.zeros(1, np.uint8)
    starts = np.frombuffer(offsets, np.int64)[first : first + len(column) + 1]
    # Read-only whoever owns the memory, so that compiled loops over them are compiled once.
    starts.flags.writeable = content.flags.writeable = False
    return starts, content
