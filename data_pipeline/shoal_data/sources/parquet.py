"""Documents of Parquet. A damaged row group costs its own rows; columns other than the text never cost the text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shoal_core.errors import UserError
from shoal_data.sources.columns import Columns, Quarantined, words
from shoal_data.sources.opening import open_file
from shoal_data.sources.parts import Piece

__all__ = ["parquet_columns"]


def parquet_columns(piece: Piece, column: str, lost: list[Quarantined]) -> Iterator[Columns]:
    """The row groups of `piece`; those that cannot be read go to `lost`.

    Where the whole file is of no use, the piece with its first row group says so.
    """
    with open_file(piece.path, piece.stamp) as opened:
        try:
            file = pq.ParquetFile(opened, page_checksum_verification=True, arrow_extensions_enabled=False)
            text, lang = _leaf(file, column), None if column == "lang" else _leaf(file, "lang")
            cause = _unfit(file.schema_arrow, column)
        except UserError:
            raise
        except Exception as error:
            lost.append(Quarantined(piece.path, piece.row or None, f"unreadable Parquet: {words(error)}", None))
            return
        if text is None or cause:
            if piece.first == 0:
                lost.append(Quarantined(piece.path, None, cause, file.metadata.num_rows))
            return
        row = piece.row
        for group in range(piece.first, piece.last or file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            origin = f"Parquet row group {group}"
            try:
                texts, tags = _row_group(file, group, text, lang)
            except UserError:
                raise
            except Exception as error:
                lost.append(Quarantined(piece.path, row, f"unreadable {origin}: {words(error)}", rows))
            else:
                if len(texts) < rows:
                    missing = rows - len(texts) if _adds_up(file.metadata) else None
                    cause = f"{origin} ends after {len(texts)} of {rows} rows"
                    lost.append(Quarantined(piece.path, row + len(texts), cause, missing))
                yield Columns(texts, tags, np.arange(row, row + len(texts)), "null text", origin)
            row += rows


def _adds_up(footer: pq.FileMetaData) -> bool:
    """Whether the row groups of a file claim as many rows together as the file does: else none of it is proof."""
    return sum(footer.row_group(group).num_rows for group in range(footer.num_row_groups)) == footer.num_rows


def _unfit(schema: pa.Schema, column: str) -> str:
    """Why a file of `schema` has no text in `column`; empty if it may have."""
    count = schema.names.count(column)
    if count != 1:
        names = ", ".join(schema.names)
        return (
            f"{count} columns {column!r}: it is not clear which is meant"
            if count
            else f"no column {column!r} (it has {names})"
        )
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    try:
        pa.nulls(0, value).cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return f"the text column {column!r} is {kind}, not text"
    return ""


def _leaf(file: pq.ParquetFile, column: str) -> int | None:
    """Which of Parquet's columns, where nested ones count as many, the only flat column of a name is."""
    fields = list(file.schema_arrow)
    found = [at for at, field in enumerate(fields) if field.name == column]
    if len(found) != 1 or pa.types.is_nested(fields[found[0]].type):
        return None
    return sum(_leaves(field.type) for field in fields[: found[0]])


def _leaves(kind: pa.DataType) -> int:
    if not pa.types.is_nested(kind):
        return 1
    return sum(_leaves(kind.field(at).type) for at in range(kind.num_fields))


def _row_group(
    file: pq.ParquetFile, group: int, text: int, lang: int | None
) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """The text of a row group, and its language tags if they can be read.

    The columns are asked for by number: a name with a dot may be that of several.
    """
    if lang is not None:
        try:
            table = file.reader.read_row_group(group, column_indices=sorted((text, lang)), use_threads=False)
            return table.column(int(text > lang)), table.column(int(lang > text))
        except UserError:
            raise
        except Exception:  # the text may be whole; the tags are not worth it
            pass
    return file.reader.read_row_group(group, column_indices=[text], use_threads=False).column(0), None
