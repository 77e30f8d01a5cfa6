"""Growing files of JSON lines, read by another process than their writer's: all as they come, or from a number on."""

from __future__ import annotations

import io
import os
from array import array
from pathlib import Path
from typing import IO, Any

from shoal.record.jsonl import DAMAGED, SEAM, Check, parse_line
from shoal_core.errors import UserError

__all__ = ["After", "Tail"]

UNKNOWN = 0
"""Stands for the hash of a line."""


class Tail:
    """Reads a growing file of JSON lines, from another process than its writer's.

    When the file is replaced (steps were taken back), it is read again from its start, and of the lines that stayed
    those seen before are left out. No clock is asked: it may have been set back meanwhile.

    `start`: bytes and lines that were seen before and are not read again, unless no line ends there."""

    def __init__(self, path: Path, check: Check | None = None, start: tuple[int, int] = (0, 0)) -> None:
        self.path, self._check, self._start = path, check, start
        self._file: io.BufferedReader | None = None
        self._line = 0
        self._seen = array("q")
        """Of each line seen: its hash; `UNKNOWN` of those that were seen before."""
        self._stayed = 0
        """How many of the lines that are there stayed when the file was replaced."""

    def read(self) -> list[dict[str, Any]]:
        """The lines finished since the last call; never waits.

        Raises:
            UserError: a finished line is no JSON object, or not what it should be.
        """
        if not self._open():
            return []
        assert self._file is not None
        found: list[dict[str, Any]] = []
        while (line := self._file.readline()).endswith(b"\n"):
            number, mark = self._line, hash(line.rstrip())
            self._line += 1
            if number < self._stayed and number < len(self._seen) and self._seen[number] in (mark, UNKNOWN):
                continue
            self._stayed = 0
            del self._seen[number:]
            self._seen.append(mark)
            found.append(parse_line(line, f"{self.path}:{self._line}", self._check))
        self._file.seek(-len(line), os.SEEK_CUR)
        return found

    def _open(self) -> bool:
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return self._file is not None
        # An inode cannot be used again while it is held open, so a different one means a different file.
        if self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), now):
            return True
        first = self._file is None and not self._seen
        self.close()
        self._file = io.BufferedReader(io.FileIO(self.path))
        self._line = self._stayed = 0
        if first and _goes_to(self._file, self._start[0]):
            self._line = self._start[1]
            self._seen = array("q", [UNKNOWN]) * self._line
            return True
        if self._seen:
            seams = [number for number, line in enumerate(self._file, start=1) if line.endswith(SEAM.encode())]
            self._stayed = seams[-1] if seams else 0
            self._file.seek(0)
        return True

    @property
    def position(self) -> tuple[int, int]:
        """Bytes and lines that were seen: the `start` of another one."""
        return (self._start[0] if self._file is None else self._file.tell()), self._line

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _goes_to(file: IO[bytes], at: int) -> bool:
    """Go to byte `at` if a line ends there, else stay at the beginning."""
    if at > 0:
        file.seek(at - 1)
        if file.read(1) == b"\n":
            return True
    file.seek(0)
    return False


class After:
    """Reads a growing file of JSON lines whose field `key` is a whole number that grows, from the first line on whose
    number is above `last`. Where that is, also in a file that replaced it, is found by halving: no more than some tens
    of lines are looked at."""

    def __init__(self, path: Path, key: str, last: int, check: Check | None = None) -> None:
        self.path, self.last = path, last
        self._key, self._check = key, check
        self._file: IO[bytes] | None = None

    def read(self) -> list[dict[str, Any]]:
        """The lines finished since the last call, with numbers above all that were read; never waits.

        Raises:
            UserError: a finished line is no JSON object, or not what it should be.
        """
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return []
        if self._file is None or not os.path.samestat(os.fstat(self._file.fileno()), now):
            self.close()
            self._file = open(self.path, "rb")  # noqa: SIM115
            self._file.seek(self._first(self._file, now.st_size))
        found: list[dict[str, Any]] = []
        at = self._file.tell()
        while (line := self._file.readline()).endswith(b"\n"):
            value, at = self._parsed(line, at), at + len(line)
            if value[self._key] > self.last:
                found.append(value)
                self.last = value[self._key]
        self._file.seek(at)
        return found

    def _first(self, file: IO[bytes], size: int) -> int:
        """Where the first line begins whose number is above `last`: lines before byte `low` are not, those from `high`
        on are."""
        low, high = 0, size
        while low < high:
            middle = (low + high) // 2
            file.seek(max(low, middle - 1))
            begins = low if middle == low else file.tell() + len(file.readline())
            file.seek(begins)
            line = file.readline() if begins < high else b""
            if not line.endswith(b"\n") or self._parsed(line, begins)[self._key] > self.last:
                high = middle
            else:
                low = begins + len(line)
        return low

    def _parsed(self, line: bytes, at: int) -> dict[str, Any]:
        where = f"{self.path}: the line at byte {at}"
        value = parse_line(line, where, self._check)
        if not isinstance(value.get(self._key), int):
            raise UserError(f"{where} has no {self._key!r}", DAMAGED)
        return value

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
