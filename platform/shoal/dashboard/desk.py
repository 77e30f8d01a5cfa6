"""The runs that the page can show, and who watches which."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.dashboard.watched import Watched
from shoal.printable import printable
from shoal.record import finding, layout
from shoal.record.finding import Found
from shoal_core.errors import UserError
from shoal_core.store import local_folder, unmounted

__all__ = ["Desk", "opened"]

LISTED_S = 2.0
"""Seconds for which a list of runs is good enough."""
AHEAD_S = 30.0
"""Seconds for which the first run is read before anybody asks for it."""
MOST_LISTED = 200
"""Runs of a storage that are listed, the last active ones."""


@dataclass
class Desk:
    """The runs of a `storage` (None: those here and of this user), the run that was `asked` for first among them.

    Runs are named to the page by keys that mean nothing elsewhere, so that no request names a place."""

    storage: str | None
    asked: Found | None = None
    changes: threading.Condition = field(default_factory=threading.Condition)
    _keys: dict[str, str] = field(default_factory=dict)
    _watched: dict[str, Watched] = field(default_factory=dict)
    _listed: tuple[float, dict[str, Any]] = (0.0, {})
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _version: int = 0

    def runs(self) -> dict[str, Any]:
        """The list for the page: `runs` (`key, name, status, silent, step, steps, loss, active, problem`), the last
        active first, and what is wrong with the storage, if something is (`problem`)."""
        with self._lock:
            if time.monotonic() - self._listed[0] > LISTED_S or not self._listed[1]:
                self._listed = (time.monotonic(), self._look())
            return self._listed[1]

    def watched(self, key: str) -> Watched | None:
        """The run of a key that `runs` gave; None: there is no such run."""
        with self._lock:
            address = next((address for address, known in self._keys.items() if known == key), None)
            if address is None:
                return None
            return self._watched.setdefault(key, Watched(address, self.announce))

    def read_ahead(self) -> None:
        """Begin to read the run that the page shows first, in a thread, while somebody's browser opens it."""

        def read() -> None:
            runs = self.runs()["runs"]
            if runs and (first := self.watched(runs[0]["key"])) is not None:
                with first.watching():
                    time.sleep(AHEAD_S)

        threading.Thread(target=read, daemon=True, name="dashboard").start()

    @property
    def version(self) -> int:
        """Grows with every change that a watched run saw; `changes` is notified then."""
        return self._version

    @contextlib.contextmanager
    def watching(self, runs: Sequence[Watched]) -> Iterator[None]:
        """While this lasts, what is new of these runs comes in."""
        with contextlib.ExitStack() as stack:
            for run in runs:
                stack.enter_context(run.watching())
            yield

    def announce(self) -> None:
        """Say that something may be new."""
        with self.changes:
            self._version += 1
            self.changes.notify_all()

    def _look(self) -> dict[str, Any]:
        unread: list[str] = []
        try:
            found = finding.runs(self.storage, lambda error: unread.append(error.problem))
        except UserError as error:
            found, unread = [], [error.problem]
        if self._keys and self.storage is not None and (why := unmounted(self.storage)) is not None:
            unread = [f"what is shown is old: {self.storage} was there {why}"]
        found = found[:MOST_LISTED]
        asked = self.asked
        if asked is not None:
            same = finding.key(asked.address)
            found = [asked, *(one for one in found if finding.key(one.address) != same)]
        problem = printable("; ".join(unread[:3])) or None
        return {
            "storage": printable(self.storage or ""),
            "runs": [self._about(one) for one in found],
            "problem": problem,
        }

    def _about(self, one: Found) -> dict[str, Any]:
        key = self._keys.setdefault(one.address, f"run{len(self._keys)}")
        told: dict[str, Any] = {"key": key, "name": printable(one.name), "active": one.active or None, "problem": None}
        try:
            now = one.status() if one.published or (Path(one.address) / layout.STATUS).exists() else {}
        except (UserError, OSError) as error:
            now, told["problem"] = {}, printable(error)
        return told | {name: now.get(name) for name in ("status", "silent", "step", "steps", "loss")}


def opened(target: str | None, storage: str | None) -> Desk:
    """The runs that a word on the command line means: a run's id or address, or a storage; None: all of `storage`.

    Raises:
        UserError: it is neither; names the runs that there are. StoreError: the store does not answer.
    """
    if target is None:
        return Desk(storage)
    try:
        found = finding.find(target, storage)
    except UserError:
        folder = local_folder(target)
        if folder.is_dir() if folder is not None else finding.runs(target, lambda error: None):
            return Desk(target)
        raise
    return Desk(found.storage, found)
