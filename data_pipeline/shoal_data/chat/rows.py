"""Rows of conversations out of input files; a row that cannot be read is told, never dropped silently."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shoal_core.errors import UserError
from shoal_data.sources.arrow_ipc import batches
from shoal_data.sources.columns import Quarantined, words
from shoal_data.sources.documents import check_unchanged
from shoal_data.sources.jsonl import Gap, stretches, too_long
from shoal_data.sources.opening import open_file
from shoal_data.sources.parts import Piece
from shoal_data.sources.unpack import blocks

__all__ = ["READ", "rows_of"]

_COLUMNS = ("messages", "prompt", "completion", "tools")
Row = tuple[int, dict[str, Any]]


def rows_of(piece: Piece, lost: list[Quarantined]) -> Iterator[Row]:
    """The rows of a file, each with its number in it, 0-based; those that cannot be read go to `lost`.

    Raises:
        StoreError: the store does not give the file.
        UserError: the file is not what it was when `piece` was planned.
    """
    check_unchanged(piece)
    try:
        yield from READ[piece.format](piece, lost)
    except (UserError, MemoryError):  # neither proves anything about the bytes
        raise
    except Exception as error:  # whatever a parser says of broken bytes: the next file goes on
        lost.append(Quarantined(piece.path, None, f"unreadable {piece.format}: {words(error)}", None))
    check_unchanged(piece)


def _of_jsonl(piece: Piece, lost: list[Quarantined]) -> Iterator[Row]:
    row = 0
    for stretch in stretches(blocks(piece)):
        if isinstance(stretch, Gap):
            lost.append(Quarantined(piece.path, row, stretch.cause, stretch.rows))
            row += stretch.rows or 0
            continue
        for line in stretch.removesuffix(b"\n").split(b"\n"):
            if line.strip():
                value = _object(line.strip())
                if isinstance(value, str):
                    lost.append(Quarantined(piece.path, row, value))
                else:
                    yield row, value
            row += 1


def _object(line: bytes) -> dict[str, Any] | str:
    """What a line of JSON holds, or why it is no object."""
    if cause := too_long(line):
        return cause
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start}"
    except RecursionError:
        return "unreadable JSON line: nested too deeply"
    except ValueError as error:
        return f"unreadable JSON line: {words(error)}"
    if isinstance(value, dict):
        return value
    kind = "a JSON array (jq -c '.[]' makes lines of it)" if isinstance(value, list) else "no object"
    return f"unreadable JSON line: {kind}"


def _of_parquet(piece: Piece, lost: list[Quarantined]) -> Iterator[Row]:
    with open_file(piece.path, piece.stamp) as opened:
        file = pq.ParquetFile(opened, page_checksum_verification=True, arrow_extensions_enabled=False)
        names = _columns(file.schema_arrow)
        if not names:
            lost.append(Quarantined(piece.path, None, _without(file.schema_arrow), file.metadata.num_rows))
            return
        row = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            try:
                values = file.read_row_group(group, columns=names, use_threads=False).to_pylist()
            except UserError:
                raise
            except Exception as error:
                lost.append(Quarantined(piece.path, row, f"unreadable Parquet row group {group}: {words(error)}", rows))
            else:
                yield from enumerate(values, start=row)
            row += rows


def _of_arrow(piece: Piece, lost: list[Quarantined]) -> Iterator[Row]:
    for row, batch in batches(piece, lost):
        names = _columns(batch.schema)
        if not names:
            lost.append(Quarantined(piece.path, None, _without(batch.schema), None))
            return
        try:
            batch.validate(full=True)
            values = batch.select(names).to_pylist()
        except (UserError, MemoryError):
            raise
        except Exception as error:
            lost.append(Quarantined(piece.path, row, f"unreadable Arrow batch: {words(error)}", len(batch)))
        else:
            yield from enumerate(values, start=row)


def _columns(schema: pa.Schema) -> list[str]:
    """Columns to read of a table; none where it has no conversations."""
    names = [name for name in _COLUMNS if name in schema.names]
    return names if "messages" in names or {"prompt", "completion"} <= set(names) else []


def _without(schema: pa.Schema) -> str:
    return f"no column `messages`, nor `prompt` and `completion` (it has {', '.join(schema.names)})"


READ: dict[str, Callable[[Piece, list[Quarantined]], Iterator[Row]]] = {
    "arrow": _of_arrow,
    "jsonl": _of_jsonl,
    "parquet": _of_parquet,
}
"""By the format of a piece: what reads its rows."""
