"""Documents of Parquet. A damaged row group costs its own rows; columns other than the text never cost the text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shoal_core.errors import UserError
from shoal_data.sources.columns import Columns, Quarantined, words
from shoal_data.sources.fields import extract, locate, unfit
from shoal_data.sources.opening import open_file
from shoal_data.sources.parts import Piece

__all__ = ["parquet_columns"]


def parquet_columns(piece: Piece, column: str, join: str | None, lost: list[Quarantined]) -> Iterator[Columns]:
    """The row groups of `piece`; those that cannot be read go to `lost`.

    Where the whole file is of no use, the piece with its first row group says so.
    """
    with open_file(piece.path, piece.stamp) as opened:
        try:
            file = pq.ParquetFile(opened, page_checksum_verification=True, arrow_extensions_enabled=False)
            schema = file.schema_arrow
            cause = unfit(schema, column, join)
            text = None if cause else _leaf(schema, column)
            lang = None if column == "lang" else _leaf(schema, "lang")
        except UserError:
            raise
        except Exception as error:
            lost.append(Quarantined(piece.path, piece.row or None, f"unreadable Parquet: {words(error)}", None))
            return
        if text is None:
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


def _leaf(schema: pa.Schema, column: str) -> int | None:
    """Which of Parquet's columns, where nested ones count as many, is the only one that `column` means."""
    found = locate(schema, column)
    if len(found) != 1:
        return None
    (first, *rest) = found[0]
    before = sum(_leaves(field.type) for field in list(schema)[:first])
    kind = schema.field(first).type
    for at in rest:
        before += sum(_leaves(kind.field(other).type) for other in range(at))
        kind = kind.field(at).type
    return before if _leaves(kind) == 1 else None


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
            return _innermost(table.column(int(text > lang))), table.column(int(lang > text))
        except UserError:
            raise
        except Exception:  # the text may be whole; the tags are not worth it
            pass
    return _innermost(file.reader.read_row_group(group, column_indices=[text], use_threads=False).column(0)), None


def _innermost(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """What the structs hold of which one column alone was read."""
    while pa.types.is_struct(column.type):
        column = extract(column, [0])
    return column
