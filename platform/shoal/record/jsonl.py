"""Files of JSON lines that survive a crash of their writer, and whole files replaced in one move.

A line counts once its newline is on the file: readers stop before a last line without one (its writer is writing it,
or died doing so), and the next writer cuts it off.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shoal_core.errors import UserError
from shoal_core.files import parse_json, replace_file

__all__ = [
    "DAMAGED",
    "SEAM",
    "Appender",
    "Check",
    "dumps",
    "json_object",
    "last_lines",
    "line_of",
    "parse_line",
    "read_json",
    "read_lines",
    "repair",
]

_BLOCK = 1 << 16
SEAM = " \n"
"""Ends the last line that stayed when a file was replaced; all others end without a space."""
DAMAGED = "the record was edited or damaged: restore it"
Check = Callable[[dict[str, Any]], str | None]
"""Says what is wrong with a line, if something is."""


def dumps(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that every tool can read: a number that is not finite becomes null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def line_of(record: Mapping[str, Any]) -> bytes:
    """A record as the line of a file.

    Raises:
        TypeError: it holds what JSON cannot.
    """
    return dumps(dict(record)).encode() + b"\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None if there is no such file.

    Raises:
        UserError: the file holds something else, or cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "restore the file") from error
    return json_object(text, str(path))


def json_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object that a file holds. where: which one, for errors.

    Raises:
        UserError: it holds something else.
    """
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is not JSON ({error})", "restore the file, or remove it if the run is over"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{where} holds no JSON object", "restore the file, or remove it if the run is over")
    return value


def parse_line(line: bytes, where: str, check: Check | None = None) -> dict[str, Any]:
    """The JSON object in a line. where: which one, for errors.

    Raises:
        UserError: it is none, or `check` finds something wrong with it.
    """
    try:
        value = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error})", DAMAGED) from error
    if not isinstance(value, dict):
        raise UserError(f"{where} is no JSON object", DAMAGED)
    if check is not None and (problem := check(value)):
        raise UserError(f"{where} {problem}", DAMAGED)
    return value


def read_lines(path: Path, check: Check | None = None) -> Iterator[dict[str, Any]]:
    """The whole lines of `path` in order; nothing if there is no such file. An unfinished last line is left out.

    Raises:
        UserError: a finished line is no JSON object, or `check` finds something wrong with it.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return  # its writer may go on, and what then comes is no line but the rest of this one
                yield parse_line(line, f"{path}:{number}", check)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", DAMAGED) from error


def last_lines(path: Path, size: int, check: Check | None = None) -> list[dict[str, Any]]:
    """The last whole lines of `path`, in order, as many as `size` bytes hold, and at least one if there is one. What it
    costs does not grow with the file.

    Raises:
        UserError: as `read_lines`; a line is named by where it begins, in bytes.
    """
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            while True:
                start = max(0, end - size)
                file.seek(start)
                block = file.read(end - start)
                first = block.find(b"\n") + 1 if start else 0  # what begins before the block is left out
                last = block.rfind(b"\n") + 1
                if start == 0 or last > first:
                    break
                size *= 4
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", DAMAGED) from error
    found, at = [], start + first
    for line in block[first:last].splitlines(keepends=True):
        found.append(parse_line(line, f"{path}: the line at byte {at}", check))
        at += len(line)
    return found


def repair(path: Path) -> int:
    """Cut off an unfinished last line, as a writer that died in mid-write leaves it. Returns the bytes cut."""
    if not path.exists():
        return 0
    with open(path, "r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
        return size - end


class Appender:
    """The one writer of a file of JSON lines. Each line has reached the operating system when `append` returns."""

    def __init__(self, path: Path) -> None:
        repair(path)
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line. Raises: as `write`."""
        self.write(line_of(record))

    def write(self, line: bytes) -> None:
        """Add one line that ends with its newline.

        Raises:
            OSError: the line could not be written whole (a full disk); no part of it stays.
        """
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Replace the file by one with the wanted lines only, in one move; the last of them ends in a seam, by which
        readers know what came before. Returns the number of lines dropped."""
        kept: list[str] = []
        dropped = 0
        for record in read_lines(self.path):
            if wanted(record):
                kept.append(dumps(record) + "\n")
            else:
                dropped += 1
        if dropped:
            kept[-1:] = [line.removesuffix("\n") + SEAM for line in kept[-1:]]
            replace_file(self.path, "".join(kept))
        self._reopen()  # by every call: one before may have failed between replacing the file and opening it
        return dropped

    def _reopen(self) -> None:
        """Go on in the file that is at `path` now; what is open stays so if there is no descriptor to be had."""
        former, self._file = self._file, os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.close(former)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)
