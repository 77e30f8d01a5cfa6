"""The record's pen: what is told is written in the order told, by a thread of its own, so that nobody waits for a disk.

A write that fails (a full disk, no descriptor left) is tried again until it succeeds, with all that was told since
behind it: the record has no hole. What waits is counted, so that whoever tells can end the run before memory ends.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from shoal.record import layout
from shoal.record.generations import Membership, Newest, membership, people, told
from shoal.record.jsonl import line_of, read_json
from shoal.record.rundir import RunDir, journal_entry, step_entry
from shoal_core.errors import StoreError
from shoal_core.store.local_errors import vanished

__all__ = ["LINES", "SIZE", "Pen", "Stall"]

LINES, SIZE = 20_000, 64 << 20
"""What may wait to be written: lines, and bytes of them."""
RETRY = 0.5
"""Seconds between two tries of a write that failed."""
PAUSE, DUTY = 0.2, 20
"""Between two replacements of the files that are replaced whole: seconds, and times what the last one took, so that the
picture of many workers leaves the disk to the lines."""
SETTLE = 0.04
"""Seconds for which whoever tells something may wait until it is written: a controller hears nobody meanwhile."""
SLOW = 5.0
"""Seconds after which a write that has not returned counts as failing."""


@dataclass(frozen=True)
class Stall:
    """The record cannot be written. `since`: unix seconds; `lines`: that wait, or waited at most if it is `over`."""

    reason: str
    since: float
    lines: int
    over: bool = False


@dataclass(frozen=True)
class Entry:
    """Something to do, the bytes of its line, and when (monotonic) it was told."""

    write: Callable[[], Any]
    size: int
    told: float


class Pen:
    """Writes the record `run`. Its methods return at once and may be called in any thread; a field that JSON cannot
    hold, or a step that does not follow, raises at once (TypeError, ValueError) and leaves nothing behind."""

    def __init__(self, run: RunDir, lines: int = LINES, size: int = SIZE) -> None:
        self._run, self._lines, self._size = run, lines, size
        self.last_step = run.last_step
        """The last step told, or on record before; -1: none."""
        self._waiting: deque[Entry] = deque()
        self._bytes = 0
        self._loose: dict[str, Callable[[], Any]] = {}
        """What only the newest of counts: files that are replaced whole."""
        self._told: Membership | None = None
        """The last generation told."""
        self._newest = Newest((read_json(run.path / layout.PLAN) or {}).get("generations", ()))
        self._plan_due = False
        """Generations were told that `plan.json` does not hold."""
        self._unreplaced = False
        """Of the files that are replaced whole, one could not be, and nothing newer could since."""
        self._stall: Stall | None = None
        self._last = False
        """Nothing more will be told: files that are replaced whole wait no longer for their turn."""
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="record")
        self._thread.start()

    # ---- what is told

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """A line of the journal; returns it."""
        entry = journal_entry(kind, fields)
        self._tell(layout.EVENTS, entry)
        return entry

    def step(self, step: Mapping[str, Any], shares: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """A committed step, and before it who took which samples into it (`step, cell, worker, ids`). Returns the
        step's line."""
        entry = step_entry(step, self.last_step)
        for share in shares:
            self._tell(layout.SAMPLES, share)
        self._tell(layout.STEPS, entry)
        self.last_step = int(entry["step"])
        return entry

    def truncate(self, step: int) -> None:
        """The steps `>= step` are taken back."""
        self._put(partial(self._run.truncate_steps, step), 0)
        self.last_step = min(self.last_step, step - 1)

    def generation(
        self,
        number: int,
        step: int,
        cells: Mapping[str, Sequence[str]],
        attempts: Mapping[str, int],
        shape: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Who holds what from now on (`Membership`): a line of the journal, which is returned, and `plan.json`."""
        now = Membership(number, step, time.time(), cells, attempts, shape)
        line = self.event("generation", time=now.time, **told(self._told, now))
        self._told = membership(self._told, line)
        self._plan_due = True
        if self._newest.add(now, people(line["changed"] or line["cells"] or {})):
            self._put_plan()
        return line

    def _put_plan(self) -> None:
        self._plan_due = False
        self._replace(layout.PLAN, partial(self._run.replace_plan, self._newest.entries))

    def status(self, status: Mapping[str, Any], workers: Callable[[], Iterable[Mapping[str, Any]]] = tuple) -> None:
        """The live picture. `workers`: makes its list of workers; it is called in the pen's own thread."""
        head = {"written": time.time(), **status}
        self._replace(layout.STATUS, lambda: self._run.write_status({**head, "workers": workers()}))

    def _tell(self, name: str, record: Mapping[str, Any]) -> None:
        line = line_of(record)
        self._put(partial(self._run.append, name, line), len(line))

    def _put(self, write: Callable[[], Any], size: int) -> None:
        with self._changed:
            self._waiting.append(Entry(write, size, time.monotonic()))
            self._bytes += size
            self._changed.notify_all()

    def _replace(self, name: str, write: Callable[[], Any]) -> None:
        with self._changed:
            self._loose[name] = write
            self._changed.notify_all()

    # ---- how it goes

    @property
    def full(self) -> bool:
        """More waits than may."""
        with self._changed:
            return len(self._waiting) > self._lines or self._bytes > self._size

    def stall(self) -> Stall | None:
        """What keeps the record from being written, if anything does, or did: one that is over is told once."""
        with self._changed:
            waiting = len(self._waiting)
            age = time.monotonic() - self._waiting[0].told if waiting else 0.0
            if age > SLOW:
                self._fail(f"a write takes longer than {SLOW:.0f} s", age)
            if self._stall is None:
                return None
            over = not waiting and not self._unreplaced
            found = replace(self._stall, lines=max(self._stall.lines, waiting), over=over)
            self._stall = None if over else found
            return found

    def _fail(self, reason: str, age: float = 0.0) -> None:
        if self._stall is None:
            self._stall = Stall(reason, time.time() - age, len(self._waiting))
            self._changed.notify_all()

    def _why(self, error: Exception) -> str:
        """What an error means, in words."""
        try:
            vanished(self._run.path)
        except StoreError as gone:
            return f"{gone.problem} To be done: {gone.remedy}"
        return f"{type(error).__name__}: {error}"

    def settle(self, seconds: float = SETTLE) -> bool:
        """Wait until all that was told is written, for at most `seconds`; not at all while the record is stalled. False
        if it is not."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._stall is not None, seconds)
            return not self._waiting

    def close(self, seconds: float) -> int:
        """Write what is left, within `seconds`. Returns the number of lines that could not be written."""
        if self._plan_due:
            self._put_plan()
        with self._changed:
            self._last = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._loose, seconds)
            self._closing = True
            self._changed.notify_all()
            left = len(self._waiting)
        self._thread.join(RETRY)
        if not self._thread.is_alive():
            self._run.close()
        return left

    # ---- the thread

    def _work(self) -> None:
        loose_from = 0.0
        while not self._closing:
            with self._changed:
                now = time.monotonic()
                rest = 0.0 if self._last else loose_from - now
                if not self._waiting and (not self._loose or rest > 0):
                    self._changed.wait(rest if self._loose else None)
                    continue
                entry = self._waiting[0] if self._waiting else None
                loose, self._loose = (self._loose, {}) if rest <= 0 else ({}, self._loose)
            if entry is not None:
                self._write(entry)
            if loose:
                began = time.monotonic()
                self._write_loose(loose)
                took = time.monotonic() - began
                loose_from = began + took + max(PAUSE, DUTY * took)

    def _write(self, entry: Entry) -> None:
        try:
            entry.write()
        except Exception as error:  # a full disk, or a record that somebody damaged: nothing told is given up
            with self._changed:
                self._fail(self._why(error))
                self._changed.wait_for(lambda: self._closing, RETRY)
            return
        with self._changed:
            self._waiting.popleft()
            self._bytes -= entry.size
            self._changed.notify_all()

    def _write_loose(self, files: dict[str, Callable[[], Any]]) -> None:
        failed: dict[str, Callable[[], Any]] = {}
        for name, write in files.items():
            try:
                write()
            except OSError as error:
                failed[name] = write
                with self._changed:
                    self._fail(self._why(error))
        with self._changed:
            self._unreplaced = bool(failed)
            self._loose = failed | self._loose
            self._changed.notify_all()
