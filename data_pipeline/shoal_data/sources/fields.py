"""Where the text of a row is: a column by its name, within structs by its path, or a list of strings to join."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "as_bytes",
    "column_at",
    "extract",
    "joined",
    "leaf_names",
    "locate",
    "locate_tags",
    "nearest",
    "plain",
    "unfit",
]


_BYTES = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}
_TEXT = (*_BYTES, *_BYTES.values(), pa.null())


def locate(schema: pa.Schema | Iterable[pa.Field], column: str) -> list[list[int]]:
    """The places that `column` may mean, each as the positions to go down by: one, unless the name is unclear.

    A column of just that name comes first; else a dot leads into a struct.

    >>> locate(pa.schema({"a": pa.struct({"b": pa.string()}), "c": pa.string()}), "a.b")
    [[0, 0]]
    """
    fields = list(schema)
    if exact := [[at] for at, field in enumerate(fields) if field.name == column]:
        return exact
    found: list[list[int]] = []
    for at, field in enumerate(fields):
        if column.startswith(f"{field.name}.") and pa.types.is_struct(field.type):
            inner = [field.type.field(number) for number in range(field.type.num_fields)]
            found += [[at, *rest] for rest in locate(inner, column[len(field.name) + 1 :])]
    return found


def locate_tags(schema: pa.Schema, column: str) -> list[int] | None:
    """Where the language tags are: in a column `lang`, unless that is `column`, which holds the text; or nowhere."""
    found = locate(schema, "lang") if column != "lang" else []
    return found[0] if len(found) == 1 else None


def unfit(schema: pa.Schema, column: str, join: str | None) -> str:
    """Why rows of `schema` have no text in `column`; empty if they may have."""
    found = locate(schema, column)
    if len(found) != 1:
        names = ", ".join(leaf_names(schema))
        return (
            f"{len(found)} columns {column!r}: it is not clear which is meant"
            if found
            else f"no column {column!r} (it has {names})"
        )
    kind = _type_at(schema, found[0])
    if _is_text(kind):
        return ""
    if _is_list(kind) and _is_text(kind.value_type):
        what = f"the text column {column!r} is {kind}, a list: --join names what to put between its strings"
        return "" if join is not None else what
    inner = leaf_names([pa.field(column, kind)]) if pa.types.is_struct(kind) else []
    more = f"; name what is in it: {', '.join(inner)}" if inner else ""
    return f"the text column {column!r} is {kind}, not text{more}"


def _type_at(schema: pa.Schema, path: Sequence[int]) -> pa.DataType:
    kind = schema.field(path[0]).type
    for at in path[1:]:
        kind = kind.field(at).type
    return kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    """Whether values may be text: strings and bytes of any kind, or nulls alone; numbers are none."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return value in _TEXT or pa.types.is_fixed_size_binary(value)


def leaf_names(fields: pa.Schema | Iterable[pa.Field]) -> list[str]:
    """The names of all columns, those within structs by their paths.

    >>> leaf_names(pa.schema({"a": pa.struct({"b": pa.string()}), "c": pa.string()}))
    ['a.b', 'c']
    """
    names: list[str] = []
    for field in fields:
        if pa.types.is_struct(field.type) and field.type.num_fields:
            inner = leaf_names(field.type.field(at) for at in range(field.type.num_fields))
            names += [f"{field.name}.{name}" for name in inner]
        else:
            names.append(field.name)
    return names


def nearest(wanted: str, names: Iterable[str]) -> str:
    """`, did you mean ...?`, or nothing where no name is like it.

    >>> nearest("txt", ["id", "text"])
    ": did you mean 'text'?"
    """
    known = list(dict.fromkeys(names))
    lower = {name.lower(): name for name in reversed(known)}
    close = difflib.get_close_matches(wanted.lower(), lower, n=1)
    by_leaf = [name for name in known if name.rpartition(".")[2] == wanted]
    return f": did you mean {(by_leaf or [lower[one] for one in close])[0]!r}?" if by_leaf or close else ""


def extract(column: pa.ChunkedArray, path: Sequence[int]) -> pa.ChunkedArray:
    """What lies in a column of structs at `path`; null where a struct on the way is."""
    return pc.struct_field(column, list(path)) if path else column


def column_at(table: pa.Table, path: Sequence[int]) -> pa.ChunkedArray:
    """The column of a table that `locate` found."""
    return extract(table.column(path[0]), path[1:])


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without its dictionary, if it has one.

    Raises:
        ArrowInvalid: an index points past the dictionary.
    """
    if not pa.types.is_dictionary(column.type):
        return column
    column.validate(full=True)
    return column.cast(column.type.value_type)


def joined(column: pa.ChunkedArray, join: str | None) -> pa.ChunkedArray:
    """Lists of strings as one string each, `join` between; null where a list has a null in it. Others as they are."""
    if join is None or not _is_list(column.type):
        return column
    chunks = [pc.binary_join(chunk.cast(pa.list_(pa.binary())), join.encode()) for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.binary())


def as_bytes(column: pa.Array) -> pa.Array:
    """The same values as bytes, so that `validate` looks at the layout alone and not at the text; shares its memory."""
    kind = column.type
    if kind in _BYTES:
        return column.view(_BYTES[kind])
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(column.indices, as_bytes(column.dictionary), safe=False)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        values = as_bytes(column.values)
        outer = pa.list_ if pa.types.is_list(kind) else pa.large_list
        layout = column.buffers()[:2]
        return pa.Array.from_buffers(outer(values.type), len(column), layout, offset=column.offset, children=[values])
    return column
