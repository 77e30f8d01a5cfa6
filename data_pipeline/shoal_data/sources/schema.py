"""A mistyped column, or one that is no text, is told before work starts, where the files say what columns they have."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from shoal_core.errors import StoreError, UserError
from shoal_data.sources.fields import leaf_names, locate, nearest, unfit
from shoal_data.sources.formats import format_of
from shoal_data.sources.hub_dataset import SCHEME, streamed_schema
from shoal_data.sources.opening import open_file

__all__ = ["check_column"]

_MOST = 16  # files: with more, some may have the column, and the rest is quarantined as it is read


def check_column(paths: Sequence[str], column: str, join: str | None) -> None:
    """Look for `column` in the schemas of the files at `paths`, if they are a few and all Parquet or Arrow.

    Raises:
        UserError: no file has it, or none has text in it.
    """
    if not paths or len(paths) > _MOST or not all(_says(path) for path in paths):
        return
    schemas: list[pa.Schema] = []
    for path in paths:
        try:
            schema = _schema(path)
        except StoreError:
            raise
        except (OSError, ValueError, pa.ArrowException):
            return  # who reads it says what is wrong, and quarantines it
        if schema is None:
            return
        schemas.append(schema)
    causes = [unfit(schema, column, join) for schema in schemas]
    if not all(causes):
        return
    names = sorted({name for schema in schemas for name in leaf_names(schema)})
    there = ", ".join(names) or "none"
    if not any(locate(schema, column) for schema in schemas):
        problem = f"--column {column!r}: no input file has it (they have {there})"
        raise UserError(problem, f"name the column with the text{nearest(column, names)}")
    path, cause = next((paths[at], causes[at]) for at, schema in enumerate(schemas) if locate(schema, column))
    raise UserError(f"{path}: {cause}", "name the column with the text")


def _says(path: str) -> bool:
    """Whether what lies at `path` says what columns it has."""
    return path.startswith(SCHEME) or format_of(path) in ("parquet", "arrow")


def _schema(path: str) -> pa.Schema | None:
    if path.startswith(SCHEME):
        return streamed_schema(path)
    with open_file(path) as file:
        if format_of(path) == "parquet":
            return pq.read_schema(file)
        magic = file.read(8)
        file.seek(8 if magic == b"ARROW1\0\0" else 0)
        return pa.ipc.open_stream(file).schema
