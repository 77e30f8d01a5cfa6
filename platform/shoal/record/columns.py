"""The figures of a growing `steps.jsonl` as columns: many lines at once, and then each as it comes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow
import pyarrow.json
from numpy.typing import NDArray

from shoal.record import layout
from shoal.record.jsonl import DAMAGED, parse_line
from shoal.record.read import COUNTED, LARGEST, wrong_step
from shoal_core.errors import UserError

__all__ = ["MOST", "Columns", "Floats", "StepColumns"]

MOST = 256
"""Figures of a line; a record that tells of more is damaged or hostile."""
_BULK = 1 << 18
"""Bytes of new lines from which on they are read by Arrow, at a tenth of the time."""
_BLOCK = 64 << 20
_KNOWN = pyarrow.schema(
    [(name, pyarrow.float64()) for name in dict.fromkeys([*layout.STEP_FIELDS, *COUNTED]) if name != "samples"]
)
Floats = NDArray[np.float64]


class Columns:
    """Figures by name, one a step, in order; NaN where a step does not have it. `count`: steps."""

    def __init__(self) -> None:
        self.count = 0
        self._room: dict[str, Floats] = {}

    @property
    def names(self) -> list[str]:
        """Of all figures, in the order in which they first came."""
        return list(self._room)

    def __getitem__(self, name: str) -> Floats:
        """One figure of every step: (count,), which is not to be written to. One that no step has is NaN."""
        room = self._room.get(name)
        return np.full(self.count, np.nan) if room is None else room[: self.count]

    def extend(self, figures: Mapping[str, Floats]) -> None:
        """Add the steps of which these are the figures: all (n,)."""
        before, more = self.count, len(next(iter(figures.values()), ()))
        self.count += more
        for name in dict.fromkeys([*self._room, *figures]):
            room = self._room.get(name, np.empty(0))
            if len(room) < self.count:
                room = np.concatenate((room, np.full(max(self.count, 2 * len(room)) - len(room), np.nan)))
            room[before : self.count] = figures.get(name, np.nan)
            self._room[name] = room
        if len(self._room) > MOST:
            raise UserError(f"the steps tell of more than {MOST} figures", DAMAGED)


class StepColumns:
    """The committed steps of the run directory `path`, as far as `look` has read them. Whole lines only.

    `epoch` grows when the file was replaced (steps were taken back): then `columns` are others, read anew."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path) / layout.STEPS
        self.columns, self.epoch = Columns(), 0
        self._file: BinaryIO | None = None
        self._at = self._lines = 0

    def look(self) -> bool:
        """Read what is new; whether there was anything.

        Raises:
            UserError: a line is not what docs/record.md says. What an earlier look read is kept.
        """
        replaced = self._open()
        if self._file is None:
            return replaced
        found = replaced
        while block := self._whole_lines(self._file):
            self._take(block)
            self._at += len(block)
            found = True
        return found

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        """Whether what was read is no longer what is there."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return False
        # an inode is not used again while it is held open: a different one means a different file
        former = self._file
        if former is not None and os.path.samestat(os.fstat(former.fileno()), now) and now.st_size >= self._at:
            return False
        self.close()
        self._file = open(self.path, "rb")  # noqa: SIM115
        if former is None:
            return False
        self.columns, self._at, self._lines = Columns(), 0, 0
        self.epoch += 1
        return True

    def _whole_lines(self, file: BinaryIO) -> bytes:
        block, size = b"", _BLOCK
        while True:
            file.seek(self._at)
            block = file.read(size)
            end = block.rfind(b"\n") + 1
            if end or len(block) < size:
                return block[:end]
            size *= 2

    def _take(self, block: bytes) -> None:
        figures = in_bulk(block) if len(block) >= _BULK else None
        if figures is None or not self._follows(figures["step"]):
            figures = self._one_by_one(block)
        self.columns.extend(figures)
        self._lines += block.count(b"\n")

    def _follows(self, steps: Floats) -> bool:
        """Whether these are numbers of steps in order, which come after those that are there."""
        before = self.columns["step"][-1:]
        return bool((np.diff(np.concatenate((before, steps))) > 0).all() and (steps >= 0).all())

    def _one_by_one(self, block: bytes) -> dict[str, Floats]:
        """As `in_bulk`, with a sentence on what is wrong with which line."""
        lines: list[dict[str, Any]] = []
        last = float(self.columns["step"][-1]) if self.columns.count else -1.0
        for number, line in enumerate(block.splitlines(), start=self._lines + 1):
            told = parse_line(line, f"{self.path}:{number}", wrong_step)
            if told["step"] <= last:
                raise UserError(f"{self.path}:{number} tells of step {told['step']} after step {last:.0f}", DAMAGED)
            last = told["step"]
            lines.append(told)
        names = dict.fromkeys(name for line in lines for name, value in line.items() if _is_figure(value))
        return {name: _floats(line.get(name) for line in lines) for name in names}


def in_bulk(block: bytes) -> dict[str, Floats] | None:
    """The figures of many lines at once, by Arrow; None: these are not all as they should be, or Arrow cannot tell."""
    options = pyarrow.json.ParseOptions(explicit_schema=_KNOWN, newlines_in_values=False)
    try:
        table = pyarrow.json.read_json(
            pyarrow.BufferReader(block), pyarrow.json.ReadOptions(block_size=4 << 20), options
        )
    except pyarrow.ArrowException:
        return None
    if len(table) != block.count(b"\n") or any(table[name].null_count for name in ("step", "time", *COUNTED)):
        return None
    numbers = [
        field.name
        for field in table.schema
        if pyarrow.types.is_floating(field.type) or pyarrow.types.is_integer(field.type)
    ]
    figures = {name: np.array(table[name].to_numpy(), dtype=np.float64) for name in numbers}
    return None if any((np.abs(values) >= LARGEST).any() for values in figures.values()) else figures


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _floats(values: Iterable[Any]) -> Floats:
    return np.array([value if _is_figure(value) else np.nan for value in values], dtype=np.float64)
