"""Token shards: one Arrow IPC file each, memory-mappable, one row a document, token values contiguous on disk."""

from __future__ import annotations

import hashlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from shoal_data.files import write_whole
from shoal_data.place import Place
from shoal_data.reading.manifest import BLOCK_BYTES

__all__ = ["ShardEntry", "write_shard"]


@dataclass(frozen=True)
class ShardEntry:
    """A row of the manifest's shard table (see `shoal_data.reading.manifest.Shards`), and the CRC-32 of each block."""

    file: str
    source: str
    size: int
    sha256: str
    offset: int
    tokens: int
    documents: int
    text_bytes: int
    blocks: list[int]


def write_shard(
    folder: Place,
    name: str,
    source: str,
    columns: dict[str, pa.Array],
    offsets: npt.NDArray[np.int64],
    ids: npt.NDArray[np.unsignedinteger],
) -> ShardEntry:
    """Write one shard, whole or not at all.

    Args:
        columns: what is known of each document: (n,) each, with at least `bytes`, its UTF-8 length.
        offsets: (n + 1,) where each document's ids start.
        ids: token ids of all documents on end, uint16 or uint32.

    Raises:
        UserError: the disk, or the store, does not take it.
    """
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids))
    batch = pa.record_batch({**columns, "tokens": lists})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    written = pa.ipc.open_file(content).get_batch(0)["tokens"]
    path = f"shards/{name}.arrow"
    view = memoryview(content)
    with ThreadPoolExecutor(1) as pool:  # the disk works while checksums are computed
        on_disk = pool.submit(write_whole, folder / path, view)
        digest = hashlib.sha256(content).hexdigest()
        blocks = [zlib.crc32(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES)]
        on_disk.result()
    return ShardEntry(
        file=path,
        source=source,
        size=content.size,
        sha256=digest,
        offset=written.values.buffers()[1].address - content.address,
        tokens=len(ids),
        documents=len(offsets) - 1,
        text_bytes=int(pa.compute.sum(columns["bytes"]).as_py() or 0),
        blocks=blocks,
    )
