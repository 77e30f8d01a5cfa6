"""A run that somebody looks at: its record, read as it grows, and brought as it grows where it lies on a store."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.dashboard.picture import FIGURES, Picture, Seen
from shoal.record import layout, read
from shoal.record.columns import StepColumns
from shoal.record.fetch import Copy
from shoal.record.place import local_record
from shoal.record.status import OVER, aged
from shoal_core.errors import UserError
from shoal_core.store import local_folder, open_store, unmounted

__all__ = ["Reader", "Watched"]

LOOK_S = 0.2
"""Seconds between two looks at files here."""
BRING_S, BRING_OVER_S = 1.0, 10.0
"""Seconds between two looks at a store: while the run goes on, and once it is over (it may be resumed)."""


class Reader:
    """Reads the record in a run directory of this machine into a picture."""

    def __init__(self, path: Path) -> None:
        self.picture = Picture()
        self._path = path
        self._steps, self._events = StepColumns(path), read.tail_events(path)
        self._status: tuple[bytes, bool] = (b"", False)
        self._damaged: dict[str, str] = {}
        """By file."""
        self._unread: str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong with the record, if something is: what was read before stays. Lines after a damaged one of its
        file are not read."""
        return next(iter(self._damaged.values()), self._unread)

    def look(self, now: float | None = None) -> bool:
        """Read what is new; whether the picture changed."""
        before, changed = self.problem, False
        if not self._path.is_dir():  # else it would be shown as it was, as if nothing happened any more
            why = unmounted(self._path)
            self._unread = f"what is shown is old: the run's folder is gone{'' if why is None else f', {why}'}"
            return before != self.problem
        try:
            changed = self._look_at_status(time.time() if now is None else now)
            self._unread = None
        except (UserError, OSError) as error:  # it is replaced every second
            self._unread = str(error)
        for file, look in ((layout.EVENTS, self._look_at_events), (layout.STEPS, self._look_at_steps)):
            if file not in self._damaged:
                try:
                    with read.readable(self._path):
                        changed |= look()
                except UserError as error:
                    self._damaged[file] = str(error)
                except OSError as error:
                    self._unread = str(error)
        return changed or before != self.problem

    @property
    def over(self) -> bool:
        """Whether the run has ended, as far as is known."""
        return self.picture.head()["status"] in OVER

    def _look_at_events(self) -> bool:
        events = self._events.read()
        if events:
            self.picture.take_events(events)
        return bool(events)

    def _look_at_steps(self) -> bool:
        found = self._steps.look()
        if found:
            self.picture.columns, self.picture.epoch = self._steps.columns, self._steps.epoch
        return found

    def _look_at_status(self, now: float) -> bool:
        file = self._path / layout.STATUS
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            content = b""
        status = aged(content, str(file), now) if content else None
        silent = status is not None and bool(status["silent"])
        if (content, silent) == self._status:
            return False
        self._status = (content, silent)
        self.picture.take_status(status)
        return True


class Watched:
    """The run at an address. The threads that look and bring live while somebody watches; `changed` is called in them
    after each look that found something."""

    def __init__(self, address: str, changed: Callable[[], None]) -> None:
        self._address, self._changed = address, changed
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        self._trouble: str | None = None
        self._over = threading.Event()
        self.watchers = 0
        """How many watch it."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While this lasts, what is new of the record comes in."""
        with self._lock:
            self.watchers += 1
            if self.watchers == 1:
                self._over = threading.Event()
                _thread(self._look, self._over)
        try:
            yield
        finally:
            with self._lock:
                self.watchers -= 1
                if not self.watchers:
                    self._over.set()

    def since(self, seen: Seen, names: Sequence[str] = FIGURES) -> tuple[dict[str, Any], Seen]:
        """As `Picture.since`, with `problem` where that is another than was told. Empty too while nothing is read."""
        with self._lock:
            problem, found, now = self._trouble, dict[str, Any](), seen
            if self._reader is not None:
                found, now = self._reader.picture.since(seen, names)
                problem = self._reader.problem or problem
            if problem != seen.problem:
                found["problem"] = problem
            return found, replace(now, problem=problem)

    def window(self, names: Sequence[str], first: float, last: float) -> dict[str, Any]:
        """As `Picture.window`; of a run that nobody watched nothing is known."""
        with self._lock:
            picture = Picture() if self._reader is None else self._reader.picture
            return picture.window(names, first, last)

    def _look(self, over: threading.Event) -> None:
        path = None
        while path is None:
            try:
                path = local_record(self._address)
            except UserError as error:
                self._tell(str(error))
                if over.wait(BRING_S):
                    return
        self._tell(None)
        with self._lock:
            reader = self._reader = self._reader or Reader(path)
        if local_folder(self._address) is None:
            _thread(self._bring, path, reader, over)
        while True:
            with self._lock:
                changed = reader.look()
            if changed:
                self._changed()
            if over.wait(LOOK_S):
                return

    def _bring(self, path: Path, reader: Reader, over: threading.Event) -> None:
        copy = Copy(open_store(self._address), path)
        while not over.wait(BRING_OVER_S if reader.over else BRING_S):
            try:
                copy.bring()
                self._tell(None)
            except UserError as error:
                self._tell(f"what is shown may be old: {error}")
        copy.close()

    def _tell(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._changed()


def _thread(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True, name="dashboard").start()
