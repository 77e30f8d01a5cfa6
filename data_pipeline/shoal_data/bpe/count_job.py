"""Counting the pre-tokens of a corpus: partial sums a part, then a hash-partitioned reduce, both on Ray Data.

A task's memory is bounded by its part or its partition, whatever the size of the corpus; partial sums lie in files, so
a job that is run again counts only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_data.arrow import read_batch, write_batches
from shoal_data.bpe.wordcount import WordCounter
from shoal_data.files import write_json
from shoal_data.jobs.session import RaySession
from shoal_data.jobs.tasks import run_parts, use_ray
from shoal_data.place import Place, address_of, place_at
from shoal_data.sources.documents import Quarantined, read_piece
from shoal_data.sources.parts import Part, Piece

__all__ = ["count_words", "forget", "has_words", "quarantined"]

_PARTITION_BYTES = 2 << 30  # of text; each partition's distinct words fit in memory many times over


def count_words(
    parts: Sequence[Part],
    column: str,
    join: str | None,
    pattern: str,
    folder: Place,
    min_count: int,
    session: RaySession,
) -> tuple[pa.LargeBinaryArray, npt.NDArray[np.int64]]:
    """Distinct pre-tokens of all parts and how often each occurs (64-bit).

    Args:
        column: column or field with the text.
        join: what is put between the strings of a list, where the column holds lists.
        pattern: pre-tokenizer, a key of `shoal_data.tokenizer.patterns.PATTERNS`.
        folder: where partial sums are kept.
        min_count: leave out words that occur less often in all parts together.
        session: where Ray comes from, if the work is worth it.
    """
    size = sum(piece.size for part in parts for piece in part.pieces)
    partitions = max(1, size // _PARTITION_BYTES)
    settings = {
        "column": column,
        "join": join,
        "pattern": pattern,
        "folder": address_of(folder),
        "partitions": partitions,
        "parts": len(parts),
        "min_count": min_count,
    }
    reduces = [Part(index, "", (Piece("", "counts", 0, 0, 0, 1),)) for index in range(partitions)]
    missing = [part for part in parts if not _partial(folder, part.id).exists()]
    use_ray(session, missing, wait=True)
    if missing:
        run_parts("count", _count_part, missing, settings, ["documents"], folder)
    if partitions == 1:
        return _sum_partition(folder, 0, settings)
    missing = [part for part in reduces if not _reduced(folder, part.id).exists()]
    if missing:
        run_parts("reduce", _reduce_partition, missing, settings, ["words"], folder)
    batches = [read_batch(_reduced(folder, part.id), 0) for part in reduces]
    table = pa.Table.from_batches(batches).combine_chunks()
    return table["word"].chunk(0), table["count"].to_numpy()


def quarantined(parts: Sequence[Part], folder: Place) -> list[dict[str, Any]]:
    """What `count_words` could not read: file, row and cause of each."""
    return [entry for part in parts for entry in json.loads(_left_out(folder, part.id).read_bytes())]


def forget(folder: Place) -> None:
    """Remove what `count_words` keeps."""
    for pattern in ("counts-*.arrow", "reduced-*.arrow", "left-out-*.json"):
        for partial in folder.glob(pattern):
            partial.unlink()


def has_words(parts: Sequence[Part], folder: Place) -> bool:
    """Whether `count_words` found any, however rare."""
    return any(len(read_batch(_partial(folder, part.id), 0)) for part in parts)


def _left_out(folder: Place, part: int) -> Place:
    return folder / f"left-out-{part:06d}.json"


def _partial(folder: Place, part: int) -> Place:
    return folder / f"counts-{part:06d}.arrow"


def _reduced(folder: Place, partition: int) -> Place:
    return folder / f"reduced-{partition:06d}.arrow"


def _count_part(part: Part, settings: dict[str, Any]) -> dict[str, int]:
    """Write the counts of one part, a record batch a partition of the words by hash."""
    quarantine: list[Quarantined] = []
    counter = WordCounter(settings["pattern"])
    documents = size = 0
    for piece in part.pieces:
        for read in read_piece(piece, settings["column"], quarantine, settings["join"]):
            counter.add_text(read.text)
            documents += len(read.text)
            size += pc.sum(pc.binary_length(read.text)).as_py()
    words, counts, hashes = counter.items()
    partition = (hashes >> 32) % settings["partitions"]
    batches = []
    for index in range(settings["partitions"]):
        chosen = pa.array(np.flatnonzero(partition == index))
        batches.append(_batch(words.take(chosen), counts[chosen.to_numpy()]))
    folder = place_at(settings["folder"])
    write_json(_left_out(folder, part.id), [asdict(entry) for entry in quarantine])
    write_batches(_partial(folder, part.id), batches)  # last: where it stands, the part is done
    return {"bytes": size, "documents": documents, "words": len(counter)}


def _reduce_partition(part: Part, settings: dict[str, Any]) -> dict[str, int]:
    folder = place_at(settings["folder"])
    words, counts = _sum_partition(folder, part.id, settings)
    write_batches(_reduced(folder, part.id), [_batch(words, counts)])
    return {"bytes": 1, "words": len(words)}


def _sum_partition(
    folder: Place, partition: int, settings: dict[str, Any]
) -> tuple[pa.LargeBinaryArray, npt.NDArray[np.int64]]:
    counter = WordCounter(settings["pattern"])
    for part in range(settings["parts"]):
        batch = read_batch(_partial(folder, part), partition)
        counter.add_counts(batch["word"], batch["count"].to_numpy())
    words, counts, _ = counter.items()
    kept = counts >= settings["min_count"]
    return (words, counts) if kept.all() else (words.filter(pa.array(kept)), counts[kept])


def _batch(words: pa.LargeBinaryArray, counts: npt.NDArray[np.int64]) -> pa.RecordBatch:
    return pa.record_batch({"word": words, "count": pa.array(counts)})
