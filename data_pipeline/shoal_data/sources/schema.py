"""A mistyped column is told before work starts, where the files say what columns they have."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from shoal_core.errors import StoreError, UserError
from shoal_data.sources.formats import format_of
from shoal_data.sources.opening import open_file

__all__ = ["check_column"]

_MOST = 16  # files: with more, some may have the column, and the rest is quarantined as it is read


def check_column(paths: Sequence[str], column: str) -> None:
    """Look for `column` in the schemas of the files at `paths`, if they are a few and all Parquet.

    Raises:
        UserError: no file has it.
    """
    if len(paths) > _MOST or any(format_of(path) != "parquet" for path in paths):
        return
    names: list[str] = []
    for path in paths:
        try:
            with open_file(path) as file:
                names += pq.read_schema(file).names
        except StoreError:
            raise
        except (OSError, ValueError, pa.ArrowException):
            return  # who reads it says what is wrong, and quarantines it
        if column in names:
            return
    there = ", ".join(sorted(set(names))) or "none"
    raise UserError(f"--column {column!r}: no input file has it (they have {there})", "name the column with the text")
