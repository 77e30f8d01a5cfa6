"""What an Arrow IPC file is made of, stream or file, told from the heads of its messages: no column is read.

Each message is a marker, the length of its metadata, the metadata (a flatbuffer, `Message.fbs` of Arrow's format) and a
body. pyarrow gives a message only with its body; three fields of the metadata say what can be skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["BrokenArrow", "Message", "messages"]

_MAGIC = b"ARROW1\0\0"
_MARKER = b"\xff\xff\xff\xff"
_HEAD = 4 << 10  # bytes read of each message at first: most metadata is smaller
_LARGEST = 256 << 20  # bytes of metadata
_KINDS = {1: "schema", 2: "dictionary", 3: "batch"}


class BrokenArrow(Exception):
    """The heads prove that the file is broken, or none of Arrow's, from some place on."""


@dataclass(frozen=True)
class Message:
    """A message where it lies.

    Attributes:
        kind: `schema`, `dictionary` or `batch`.
        rows: of a batch; of others 0.
        first, last: half-open range of its bytes, metadata and body.
    """

    kind: str
    rows: int
    first: int
    last: int


def messages(file: BinaryIO, size: int, place: int = 0, end: int = 0) -> Iterator[Message]:
    """The messages of a file from byte `place` on, where one begins, to its end mark.

    Args:
        size: of the file, in bytes.
        end: stop here, where another message begins; 0: at the end mark.

    Raises:
        BrokenArrow: what follows is no message, or the file ends within one, or between two without the end mark:
            then it may be cut short.
    """
    begun = place > 0
    if not begun:
        file.seek(0)
        place = len(_MAGIC) if file.read(len(_MAGIC)) == _MAGIC else 0
    while place < (end or size):
        file.seek(place)
        head = file.read(min(_HEAD, size - place))
        if head[:4] != _MARKER:
            raise BrokenArrow(f"no Arrow message at byte {place}")
        if len(head) < 8:
            raise BrokenArrow(f"it ends within the message at byte {place}")
        length = int.from_bytes(head[4:8], "little")
        if length == 0:
            return  # the end mark
        if length > min(_LARGEST, size - place):
            raise BrokenArrow(f"it ends within the message at byte {place}, or that is damaged")
        metadata = head[8 : 8 + length]
        metadata += file.read(length - len(metadata))
        try:
            kind, rows, body = _read(metadata)
        except (struct.error, IndexError) as error:
            raise BrokenArrow(f"damaged message at byte {place}") from error
        last = place + 8 + length + body
        if body < 0 or rows < 0 or kind not in _KINDS:
            raise BrokenArrow(f"damaged message at byte {place}")
        if not begun and _KINDS[kind] != "schema":
            raise BrokenArrow("it does not begin with a schema")
        begun = True
        if last > size:
            raise BrokenArrow(f"it ends within the message at byte {place}")
        yield Message(_KINDS[kind], rows if kind == 3 else 0, place, last)
        place = last
    if not end:
        raise BrokenArrow(f"it ends at byte {size} without Arrow's end mark: rows may be missing")


def _read(metadata: bytes) -> tuple[int, int, int]:
    """Kind, number of rows and length of the body: `header_type`, `header.length`, `bodyLength`."""
    table = _unsigned(metadata, 0)
    kind = _field(metadata, table, 1)
    header = _field(metadata, table, 2)
    body = _field(metadata, table, 3)
    if not kind or not header:
        raise IndexError
    inner = header + _unsigned(metadata, header)
    rows = _field(metadata, inner, 0) if metadata[kind] == 3 else 0
    return metadata[kind], _long(metadata, rows) if rows else 0, _long(metadata, body) if body else 0


def _field(metadata: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table lies; 0 if it has its default."""
    (back,) = struct.unpack_from("<i", metadata, table)
    entries = table - back
    if entries < 0:
        raise IndexError
    (size,) = struct.unpack_from("<H", metadata, entries)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, entries + 4 + 2 * number)
    return table + offset if offset else 0


def _unsigned(metadata: bytes, place: int) -> int:
    return int(struct.unpack_from("<I", metadata, place)[0])


def _long(metadata: bytes, place: int) -> int:
    return int(struct.unpack_from("<q", metadata, place)[0])
