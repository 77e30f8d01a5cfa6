"""Exact deduplication: which documents have the same content as one before them.

Each part's documents are hashed by a task; the hashes are partitioned by their value, and a task a partition finds what
came before. No process holds more than a part or a partition.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from shoal_data.arrow import read_batch, text_buffers, write_batches
from shoal_data.jobs.tasks import run_parts
from shoal_data.place import Place, address_of, place_at
from shoal_data.sources.documents import Quarantined, read_piece
from shoal_data.sources.parts import Part, Piece

__all__ = ["find_duplicates", "is_duplicate"]

_PARTITION_BYTES = 2 << 30  # of text: some 10 MB of hashes where documents have 5 KB
_MOST_PARTITIONS = 256


def find_duplicates(parts: Sequence[Part], column: str, join: str | None, folder: Place) -> None:
    """Write, for every part, which of its documents came before in the order of parts and rows.

    Content is compared by 128 bits of BLAKE2b.
    """
    text = sum(piece.size for part in parts for piece in part.pieces)
    partitions = min(_MOST_PARTITIONS, 1 + text // _PARTITION_BYTES)
    settings = {
        "column": column,
        "join": join,
        "folder": address_of(folder),
        "parts": len(parts),
        "partitions": partitions,
    }
    missing = [part for part in parts if not _hashes(folder, part.id).exists()]
    if missing:
        run_parts("hash", _hash_part, missing, settings, ["documents"], folder)
    finds = [Part(index, "", (Piece("", "hashes", 0, 0, 0, 1),)) for index in range(partitions)]
    missing = [part for part in finds if not _found(folder, part.id).exists()]
    if missing:
        run_parts("deduplicate", _find_in_partition, missing, settings, ["duplicates"], folder)


def is_duplicate(folder: Place, part: int, documents: int) -> npt.NDArray[np.bool_]:
    """Whether each of a part's `documents` came before: (documents,)."""
    found = np.zeros(documents, bool)
    paths: list[Place] = sorted(folder.glob("duplicates-*.arrow"), key=str)
    for path in paths:
        batch = read_batch(path, 0)
        whose = batch["part"].to_numpy()
        first, last = np.searchsorted(whose, [part, part + 1])
        found[batch["document"].to_numpy()[first:last]] = True
    return found


def _hashes(folder: Place, part: int) -> Place:
    return folder / f"hashes-{part:06d}.arrow"


def _found(folder: Place, partition: int) -> Place:
    return folder / f"duplicates-{partition:06d}.arrow"


def _hash_part(part: Part, settings: dict[str, Any]) -> dict[str, int]:
    """Write the hashes of one part's documents, a record batch a partition."""
    quarantine: list[Quarantined] = []
    size = 0
    found = [np.zeros((2, 0), np.uint64)]
    for piece in part.pieces:
        for documents in read_piece(piece, settings["column"], quarantine, settings["join"]):
            size += pc.sum(pc.binary_length(documents.text)).as_py()
            found.append(_hashes_of(documents.text))
    high, low = np.concatenate(found, axis=1)
    partition = high % np.uint64(settings["partitions"])
    batches = []
    for index in range(settings["partitions"]):
        chosen = np.flatnonzero(partition == index)
        columns = {"high": high[chosen], "low": low[chosen], "document": chosen}
        batches.append(pa.record_batch({name: pa.array(values) for name, values in columns.items()}))
    write_batches(_hashes(place_at(settings["folder"]), part.id), batches)
    return {"documents": len(high), "bytes": size}


def _hashes_of(text: pa.LargeStringArray) -> npt.NDArray[np.uint64]:
    """128 bits of each document's content, in two halves: (2, n)."""
    offsets, values = text_buffers(text)
    content, bounds = values.data, offsets.tolist()
    digests = [blake2b(content[first:last], digest_size=16).digest() for first, last in itertools.pairwise(bounds)]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2).T


def _find_in_partition(part: Part, settings: dict[str, Any]) -> dict[str, int]:
    """Write the documents of a partition (by part and place in it) whose hashes came before."""
    folder = place_at(settings["folder"])
    batches = [read_batch(_hashes(folder, one), part.id) for one in range(settings["parts"])]
    whose = np.repeat(np.arange(settings["parts"]), [len(batch) for batch in batches])
    table = pa.Table.from_batches(batches)
    high, low, document = (table[name].to_numpy() for name in ("high", "low", "document"))
    order = np.lexsort((low, high))  # stable: of equal ones, the first in corpus order stays first
    again = np.zeros(len(order), bool)
    again[order[1:]] = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
    found = pa.record_batch({"part": pa.array(whose[again]), "document": pa.array(document[again])})
    write_batches(_found(folder, part.id), [found])
    return {"bytes": 1, "duplicates": int(again.sum())}
