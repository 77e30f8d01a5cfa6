"""Rows of a saved dataset that another file picks by number, as `datasets` 1 left it after shuffle, select and filter.

Files lie on this machine and are mapped: of a batch only the rows that are picked are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from shoal_core.errors import UserError
from shoal_data.sources.arrow_ipc import columns_of
from shoal_data.sources.arrow_messages import BrokenArrow, Message, messages
from shoal_data.sources.columns import Columns, Quarantined, words
from shoal_data.sources.dataset_folder import data_files
from shoal_data.sources.fields import unfit
from shoal_data.sources.opening import open_file
from shoal_data.sources.parts import Piece

__all__ = ["mapped_columns"]


@dataclass(frozen=True)
class _Batch:
    path: str
    message: Message


def mapped_columns(piece: Piece, column: str, join: str | None, lost: list[Quarantined]) -> Iterator[Columns]:
    """The rows that the indices from `piece.first` to `piece.last` pick, in the order of the indices.

    Raises:
        UserError: a file of the dataset is damaged, so that nobody knows which rows are meant.
    """
    folder = piece.path.rpartition("/")[0]
    batches = _batches(tuple(data_files(folder)), piece.stamp)
    starts = np.cumsum([0, *(batch.message.rows for batch in batches)])
    wanted = _indices(piece)
    outside = (wanted < 0) | (wanted >= starts[-1])  # below 0: what is too large for an int64
    for place in np.flatnonzero(outside):
        cause = f"index {wanted.view(np.uint64)[place]} points past the {starts[-1]} rows of the dataset"
        lost.append(Quarantined(piece.path, piece.first + int(place), cause))
    kept = np.flatnonzero(~outside)
    whose = np.searchsorted(starts, wanted[kept], side="right") - 1
    texts: list[pa.Array] = []
    tags: list[pa.Array] = []
    places: list[npt.NDArray[np.int64]] = []
    for number in np.unique(whose):
        at = kept[whose == number]
        batch = batches[number]
        try:
            read = _read(batch)
            if cause := unfit(read.schema, column, join):
                lost.extend(Quarantined(piece.path, piece.first + int(one), cause) for one in at)
                continue
            found = columns_of(read, column, 0, "Arrow batch")
        except (UserError, MemoryError):
            raise
        except Exception as error:
            cause = f"unreadable Arrow batch at byte {batch.message.first} of {batch.path}: {words(error)}"
            lost.extend(Quarantined(piece.path, piece.first + int(one), cause) for one in at)
            continue
        chosen = pa.array(wanted[at] - starts[number])
        texts.append(_picked(found.text, chosen))
        tags.append(pa.nulls(len(at), pa.binary()) if found.lang is None else _picked(found.lang, chosen))
        places.append(at)
    if texts:
        order = np.argsort(np.concatenate(places))
        row = piece.first + np.concatenate(places)[order]
        yield Columns(_in_order(texts, order), _in_order(tags, order), row, "null text", "Arrow")


def _picked(column: pa.ChunkedArray, chosen: pa.Array) -> pa.Array:
    taken = column.take(chosen)
    return taken.chunk(0) if taken.num_chunks == 1 else taken.combine_chunks()


def _in_order(columns: Sequence[pa.Array], order: npt.NDArray[np.int64]) -> pa.ChunkedArray:
    return pa.chunked_array(columns).take(pa.array(order))


def _indices(piece: Piece) -> npt.NDArray[np.int64]:
    """The numbers of rows that a piece picks."""
    found: list[npt.NDArray[np.int64]] = []
    first = 0
    with pa.memory_map(piece.path) as file:
        for batch in pa.ipc.open_stream(file):
            begin, end = max(0, piece.first - first), min(len(batch), piece.last - first)
            if begin < end:
                found.append(batch.column(0).slice(begin, end - begin).to_numpy().astype(np.int64))
            first += len(batch)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


@lru_cache(maxsize=4)
def _batches(paths: tuple[str, ...], stamp: str) -> list[_Batch]:
    """The record batches of files, in order. `stamp`: of their content, so that another is looked at anew.

    Raises:
        UserError: one is damaged.
    """
    found: list[_Batch] = []
    for path in paths:
        with open_file(path) as file:
            try:
                walked = list(messages(file, file.seek(0, 2)))
            except BrokenArrow as error:
                raise UserError(
                    f"{path}: {error}: which rows the dataset's indices mean is not known", "fetch the folder again"
                ) from error
        found += [_Batch(path, message) for message in walked if message.kind == "batch"]
    return found


def _read(batch: _Batch) -> pa.RecordBatch:
    with pa.memory_map(batch.path) as file:
        schema = pa.ipc.open_stream(file).schema
        file.seek(batch.message.first)
        return pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)
