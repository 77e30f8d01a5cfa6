"""Documents of JSON Lines. What becomes of a line depends on that line alone, whatever lies beside it.

Arrow reads a stretch of lines at a time, and is believed where each line is one object; where it fails, the stretch is
cut smaller, and a small one is judged line by line, by Python's `json` and then by Arrow. What Arrow takes in a stretch
it takes alone, so both ways agree.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json

from shoal_data.sources.columns import Columns, Quarantined, words
from shoal_data.sources.json_field import JsonField, NoDocument
from shoal_data.sources.parts import Piece
from shoal_data.sources.unpack import Damage, blocks

__all__ = ["Gap", "jsonl_columns", "stretches", "too_long"]

_STRETCH = 1 << 30  # bytes of whole lines that are held, to see whether the checksum of what they come from is right
_AT_ONCE = 16 << 20  # bytes of lines that Arrow reads at a time
_SMALL = 256 << 10  # bytes of lines that are judged one by one if one of them is bad
_LONGEST = (2 << 30) - (1 << 20)  # bytes of a line
_TOO_LONG = b"\xfftoo long\n"  # stands in for a longer one
_SPACE = b" \t\r"
_MARK = b"\xef\xbb\xbf"
_ORIGIN = "JSON lines"


def jsonl_columns(piece: Piece, column: str, join: str | None, lost: list[Quarantined]) -> Iterator[Columns]:
    """The documents of `piece`; lines that are none go to `lost`. A blank line is no loss, but has a number."""
    row, field = piece.row, JsonField(column, join)
    for stretch in stretches(blocks(piece)):
        if isinstance(stretch, Gap):
            lost.append(Quarantined(piece.path, row, stretch.cause, stretch.rows))
            row += stretch.rows or 0
            continue
        for lines in _in_smaller_ones(stretch):
            yield from _columns(piece.path, lines, row, field, lost)
            row += lines.count(b"\n") + (not lines.endswith(b"\n"))


@dataclass(frozen=True)
class Gap:
    """Lines that cannot be read; how many, unless none follow."""

    cause: str
    rows: int | None


def _in_smaller_ones(stretch: bytes) -> Iterator[bytes]:
    """Whole lines of about `_AT_ONCE` bytes, so that the places of very short ones fit in memory."""
    first = 0
    while first < len(stretch):
        last = len(stretch)
        if last - first > 2 * _AT_ONCE:
            last = stretch.find(b"\n", first + _AT_ONCE) + 1 or last
        yield stretch[first:last]
        first = last


def stretches(content: Iterator[bytes]) -> Iterator[bytes | Gap]:
    """`content` in whole lines, about `_STRETCH` bytes at a time, and the gaps in it."""
    held: list[bytes] = []
    size = lines = 0  # bytes held, and of them bytes of whole lines
    within = False  # a line that is not held
    while True:
        try:
            for block in content:
                if within:
                    first = block.find(b"\n") + 1
                    block, within = block[first:] if first else b"", not first
                held.append(block)
                size += len(block)
                end = block.rfind(b"\n") + 1
                lines = size - len(block) + end if end else lines
                if size > _LONGEST and not lines:
                    held, size, within = [_TOO_LONG], len(_TOO_LONG), True
                    lines = size
                if size >= _STRETCH and lines:
                    whole = b"".join(held)
                    held, size = [whole[lines:]], size - lines
                    yield whole[:lines] if size else whole
                    del whole
                    lines = 0
        except Damage as damage:
            whole = b"".join(held)
            sure = len(whole) - min(damage.unsure, len(whole))
            last = sure if damage.complete else whole.rfind(b"\n", 0, sure) + 1
            if last:
                yield whole[:last]
            gap = whole[last:]
            within = within or not gap.endswith(b"\n")
            rows = None if damage.rest is None else gap.count(b"\n") + within
            held, size, lines = [], 0, 0
            yield Gap(damage.cause, rows)
            if damage.rest is None:
                return
            content = damage.rest
        else:
            if size:
                yield b"".join(held)
            return


def _columns(path: str, content: bytes, row: int, field: JsonField, lost: list[Quarantined]) -> Iterator[Columns]:
    """The documents of some whole lines, the first of which is line `row` of the file."""
    starts, ends = _lines(content)
    some = np.flatnonzero(ends > starts)
    if len(some) == 0:
        return
    table = None
    if _are_objects(content, starts[some], ends[some]):
        table = _table(content, field.schema(tags=field.tagged), len(some))
    if table is not None:
        tags = table["lang"] if field.tagged else None
        yield Columns(field.text(table), tags, row + some, f"no text in field {field.name!r}", _ORIGIN)
    elif len(content) > _SMALL and len(cuts := _cuts(starts, len(content))) > 2:
        for first, last in itertools.pairwise(cuts):
            end = starts[last] if last < len(starts) else len(content)
            yield from _columns(path, content[starts[first] : end], row + first, field, lost)
    else:
        yield from _one_by_one(path, content, starts, ends, row, field, lost)


def _lines(content: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each line begins and ends, without its break and the byte order mark of the first."""
    values = np.frombuffer(content, np.uint8)
    scans = range(0, len(values), _AT_ONCE)  # a mask of all of a long line would double the memory
    breaks = np.concatenate([np.flatnonzero(values[first : first + _AT_ONCE] == ord("\n")) + first for first in scans])
    open_end = [] if content.endswith(b"\n") else [len(content)]
    ends = np.concatenate((breaks, np.array(open_end, np.int64)))
    starts = np.concatenate((np.zeros(1, np.int64), breaks + 1))[: len(ends)]
    if content.startswith(_MARK):
        starts[0] = len(_MARK)
    ends -= (ends > starts) & (values[ends - 1] == ord("\r"))
    return starts, ends


def _cuts(starts: npt.NDArray[np.int64], size: int) -> list[int]:
    """Lines at which to cut `size` bytes into stretches of about `_SMALL`, the first and the end included."""
    cuts = np.searchsorted(starts, np.arange(_SMALL, size, _SMALL))
    return [0, *np.unique(cuts[(cuts > 0) & (cuts < len(starts))]).tolist(), len(starts)]


def _are_objects(content: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> bool:
    """Whether every line begins and ends as an object does: then none goes on in the next one."""
    values = np.frombuffer(content, np.uint8)
    return bool((values[starts] == ord("{")).all() and (values[ends - 1] == ord("}")).all())


def _table(content: bytes, schema: pa.Schema, count: int) -> pa.Table | None:
    """The fields of `schema` in `count` lines as Arrow reads them, or None if it does not read a row for each."""
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(content),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=max(1 << 20, len(content) + 1)),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except (ValueError, OverflowError, MemoryError, pa.ArrowException):
        return None
    return table if len(table) == count else None


def _one_by_one(
    path: str,
    content: bytes,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    row: int,
    field: JsonField,
    lost: list[Quarantined],
) -> Iterator[Columns]:
    texts: list[str] = []
    tags: list[str | None] = []
    rows: list[int] = []
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True), start=row):
        line = content[start:end].removeprefix(_MARK).strip(_SPACE)
        if not line:
            continue
        try:
            text, tag = _judged(line, field)
        except NoDocument as error:
            lost.append(Quarantined(path, number, str(error)))
        else:
            texts.append(text)
            tags.append(tag)
            rows.append(number)
    column_of_text = pa.chunked_array([pa.array(texts, pa.large_string())])
    column_of_tags = pa.chunked_array([pa.array(tags, pa.string())])
    yield Columns(column_of_text, column_of_tags, np.array(rows, np.int64), "", _ORIGIN)


def too_long(line: bytes) -> str:
    """Why a line of `stretches` is not read; empty if it is."""
    return f"a line of more than {_LONGEST >> 20} MiB" if line == _TOO_LONG.strip() else ""


def _judged(line: bytes, field: JsonField) -> tuple[str, str | None]:
    """Text and language tag of a line without space around it.

    Raises:
        NoDocument: it has none.
    """
    if cause := too_long(line):
        raise NoDocument(cause)
    if line.startswith(b"["):
        raise NoDocument(_NOT_JSON + "a JSON array, not lines (jq -c '.[]' makes lines of it)")
    if not line.startswith(b"{") or line == b"{":
        # One cause for all lines of a pretty-printed file, so that one entry names them.
        raise NoDocument(_NOT_JSON + "no object, or not a whole one (jq -c . makes one line of each)")
    try:
        # A byte that is not UTF-8 does harm in the text alone; a number may have any length.
        value = _JSON.decode(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        judged = _judged_by_arrow(line, field)
        if judged is None:
            raise NoDocument(_NOT_JSON + _in_words(error)) from None
        return judged
    text, tag = field.checked(field.value(value)), value.get("lang") if field.tagged else None
    if not _is_utf8(text):
        raise NoDocument(_bad_text(text))
    return text, tag if isinstance(tag, str) and _is_utf8(tag) else None


def _judged_by_arrow(line: bytes, field: JsonField) -> tuple[str, str | None] | None:
    """What Arrow makes of a line that Python's `json` does not take: of deep nesting, for one."""
    table = _table(line, field.schema(tags=False), 1) if line.endswith(b"}") else None
    if table is None:
        return None
    try:
        text = field.text(table)[0].as_py()
    except UnicodeDecodeError as error:
        raise NoDocument(f"invalid UTF-8 at byte {error.start}") from None
    text = field.checked(text)
    tagged = _table(line, field.schema(tags=True), 1) if field.tagged else None
    try:
        return text, tagged["lang"][0].as_py() if tagged is not None else None
    except UnicodeDecodeError:
        return text, None


def _number(_: str) -> float:
    return 0.0


_JSON = json.JSONDecoder(parse_int=_number, parse_float=_number)
_NOT_JSON = "unreadable JSON line: "


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bad_text(text: str) -> str:
    """What is wrong with text that is not UTF-8."""
    try:
        text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start}"
    except UnicodeEncodeError:
        pass
    return "half a surrogate pair in the text"


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return words(error)
    rest = error.doc[error.pos :].strip()
    if error.msg == "Extra data" and rest == ",":
        return "a comma after the object: part of a JSON array, not lines (jq -c '.[]' makes lines of it)"
    if error.msg == "Extra data" and "\r" in error.doc:
        return "several values in a line: are its lines ended by CR alone?"
    if error.msg == "Extra data":
        return "something follows the object in its line"
    return f"{error.msg.removesuffix(' at')} at character {error.pos}"
