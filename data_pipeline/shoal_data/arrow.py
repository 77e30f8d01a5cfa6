"""Arrow columns as NumPy arrays, without copying; record batches in files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from shoal_core.errors import UserError
from shoal_data.files import write_whole
from shoal_data.place import Place, Remote

__all__ = ["read_batch", "text_buffers", "write_batches"]


def text_buffers(column: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets (n + 1,) and bytes of a LargeString or LargeBinary column; read-only."""
    _, offsets, values = column.buffers()
    first = column.offset
    content = np.frombuffer(values, np.uint8) if values is not None and values.size else np.zeros(1, np.uint8)
    starts = np.frombuffer(offsets, np.int64)[first : first + len(column) + 1]
    # Read-only whoever owns the memory, so that compiled loops over them are compiled once.
    starts.flags.writeable = content.flags.writeable = False
    return starts, content


def write_batches(path: Place, batches: Sequence[pa.RecordBatch]) -> None:
    """Write record batches of one schema as an Arrow IPC file, whole or not at all."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    write_whole(path, memoryview(sink.getvalue()))


def read_batch(path: Place, index: int) -> pa.RecordBatch:
    """Record batch `index` of a file of `write_batches`: memory-mapped, or from a store that batch alone.

    Raises:
        UserError: the file is damaged.
    """
    try:
        mapped = pa.PythonFile(path.open(), "r") if isinstance(path, Remote) else pa.memory_map(str(path))
        return pa.ipc.open_file(mapped).get_batch(index)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: damaged ({error})", "delete this file and run the same command again") from error
