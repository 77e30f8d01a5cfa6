"""Where the text is in a line of JSON, as Arrow's reader is asked for it and as Python finds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shoal_data.sources.fields import extract

__all__ = ["JsonField", "NoDocument"]

_KINDS = {dict: "an object", list: "a list", bool: "true or false"}


class NoDocument(Exception):
    """Why a line is no document."""


@dataclass(frozen=True)
class JsonField:
    """Where the text is in an object: under its name, or if that is absent and has dots, in objects within it.

    Attributes:
        name: as the user wrote it.
        join: what to put between the strings of a list; None: a list is no text.
    """

    name: str
    join: str | None

    @property
    def tagged(self) -> bool:
        """Whether `lang` is another field."""
        return self.name.partition(".")[0] != "lang"

    def schema(self, *, tags: bool) -> pa.Schema:
        """What Arrow is to look for."""
        kind: pa.DataType = pa.large_string() if self.join is None else pa.list_(pa.large_string())
        fields = [pa.field(self.name, kind)]
        if "." in self.name:
            first, *inner = self.name.split(".")
            for name in reversed(inner):
                kind = pa.struct([(name, kind)])
            fields.append(pa.field(first, kind))
        return pa.schema([*fields, pa.field("lang", pa.string())] if tags else fields)

    def text(self, table: pa.Table) -> pa.ChunkedArray:
        """The column of a table of `schema`."""
        if "." not in self.name:
            return table[self.name]
        first, *inner = self.name.split(".")
        return pc.coalesce(table[self.name], extract(table[first], [0] * len(inner)))

    def value(self, line: dict[str, Any]) -> Any:
        """The same of an object that Python has read."""
        found: Any = line.get(self.name)
        if found is None and "." in self.name:
            found = line
            for name in self.name.split("."):
                found = found.get(name) if isinstance(found, dict) else None
        return found

    def checked(self, value: Any) -> str:
        """A value as text.

        Raises:
            NoDocument: it is none.
        """
        missing = f"no text in field {self.name!r}"
        if value is None:
            raise NoDocument(missing)
        if isinstance(value, list) and self.join is not None:
            if None in value:
                raise NoDocument(missing)
            if odd := [one for one in value if not isinstance(one, str)]:
                raise NoDocument(f"{missing} but a list with {_KINDS.get(type(odd[0]), 'a number')}")
            return self.join.join(value)
        if not isinstance(value, str):
            raise NoDocument(f"{missing} but {_KINDS.get(type(value), 'a number')}")
        return value
