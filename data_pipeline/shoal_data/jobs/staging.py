"""The text of a `ray.data.Dataset` in Parquet files of its own, in one order, so that parts can be cut from it.

A pipeline need not give the same rows twice, nor in blocks of the same size. So its rows are written down once, in the
order of its blocks, and all that follows is made of the files. Where they are cut hangs on the rows alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shoal_core.errors import UserError
from shoal_data.files import sweep_temporary, write_json, write_whole
from shoal_data.place import Place, address_of
from shoal_data.progress import Count
from shoal_data.sources.fields import column_at, joined, leaf_names, locate, locate_tags, nearest, plain, unfit

__all__ = ["stage"]

_BATCH = 1024  # rows of a row group
_FILE = 64 << 20  # bytes of text from which on a file is closed
_WHOLE = "staged.json"


def stage(dataset: Any, folder: Place, column: str, join: str | None) -> str:
    """Write the rows of a `ray.data.Dataset` into `folder`, unless that has been done; returns the files' glob.

    Their order is that of the dataset's blocks (Ray's `preserve_order`). Columns: `text`, in bytes, and `lang`.

    Raises:
        UserError: it has no such column, or that is no text; other things lie in `folder`, or the text of another
            column; nothing can be written.
    """
    files = f"{address_of(folder)}/*.parquet"
    asked = {"column": column, "join": join}
    if (folder / _WHOLE).is_file():
        _check_same(folder, asked)
        return files
    _clear(folder)
    held: list[pa.Table] = []
    number = size = rows = 0
    with Count("rows of Ray Data", "rows") as seen:
        for table in _texts(dataset, column, join):
            held.append(table)
            rows += len(table)
            size += pc.sum(pc.binary_length(table["text"])).as_py() or 0
            seen.advance(len(table))
            if size >= _FILE:
                _write(folder, number, held)
                held, size, number = [], 0, number + 1
    if held or not number:
        _write(folder, number, held)
    write_json(folder / _WHOLE, {"rows": rows, "files": number + bool(held), **asked})
    return files


def _check_same(folder: Place, asked: dict[str, str | None]) -> None:
    """See that what was staged is what is asked for.

    Raises:
        UserError: it is the text of another column, or joined otherwise, or that cannot be told.
    """
    try:
        found = json.loads((folder / _WHOLE).read_bytes())
        there = {name: found[name] for name in asked}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / _WHOLE}: damaged", "delete the folder: the rows are staged again") from error
    if there != asked:
        raise UserError(
            f"{folder}: holds the text of column {there['column']!r} joined by {there['join']!r}, not of "
            f"{asked['column']!r} by {asked['join']!r}",
            "delete the folder, or name another with staging=, and another corpus",
        )


def _clear(folder: Place) -> None:
    """Remove what a stage that was stopped left.

    Raises:
        UserError: something else lies there.
    """
    sweep_temporary(folder)
    found: list[Place] = list(folder.glob("*"))
    if other := [path for path in found if not path.name.startswith("rows-")]:
        raise UserError(f"{folder}: a folder with other things in it ({other[0].name})", "choose a new one to stage in")
    for path in found:
        path.unlink()


def _write(folder: Place, number: int, tables: list[pa.Table]) -> None:
    sink = pa.BufferOutputStream()
    schema = pa.schema([("text", pa.large_binary()), ("lang", pa.string())])
    with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=1, write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=_BATCH)
    write_whole(folder / f"rows-{number:06d}.parquet", memoryview(sink.getvalue()))


def _texts(dataset: Any, column: str, join: str | None) -> Iterator[pa.Table]:
    """The rows' texts, `_BATCH` at a time.

    Raises:
        UserError: they are none.
    """
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        for table in dataset.iter_batches(batch_size=_BATCH, batch_format="pyarrow"):
            if cause := unfit(table.schema, column, join):
                names = leaf_names(table.schema)
                remedy = f"name the column with the text{nearest(column, names)}"
                raise UserError(f"the dataset of Ray: {cause}", remedy)
            text = column_at(table, locate(table.schema, column)[0])
            yield pa.table({"text": plain(joined(text, join)).cast(pa.large_binary()), "lang": _tags(table, column)})
    finally:
        options.preserve_order = before


def _tags(table: pa.Table, column: str) -> pa.ChunkedArray:
    found = locate_tags(table.schema, column)
    try:
        if found is not None:
            return plain(column_at(table, found)).cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # what is no text is as good as no tag
    return pa.chunked_array([pa.nulls(len(table), pa.string())])
