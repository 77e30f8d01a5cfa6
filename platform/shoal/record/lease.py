"""Whose a run is: a file in its folder that names the session which writes its record, and shows that it is alive.

A session is one `shoal train`; controllers that Ray starts again are of the same one and count up `epoch`. The holder
touches the file every second, which needs no room on a disk. Clocks of other machines are not trusted: whether a
session lives is seen by watching whether the file is touched. Whoever finds another name in it writes no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from shoal.record import layout
from shoal_core.errors import UserError
from shoal_core.files import replace_file

__all__ = ["BEAT", "WATCH", "Held", "Holder", "Lease", "LeaseLost", "check", "claim", "may_take", "put", "read"]

BEAT, WATCH = 1.0, 5.0
"""Seconds between two touches, and for which a file is watched before its holder counts as gone."""
LOOK = 0.1
"""Seconds for which a look at the file holds."""


class Held(UserError):
    """Another session holds the run."""


class LeaseLost(OSError):
    """Another session has taken the run, or (`succeeded`) another controller of this one: no more may be written."""

    def __init__(self, words: str, *, succeeded: bool = False) -> None:
        super().__init__(words)
        self.words, self.succeeded = words, succeeded


@dataclass(frozen=True)
class Holder:
    """What the file says."""

    owner: str
    epoch: int
    host: str
    pid: int

    def words(self) -> str:
        return f"on {self.host}, process {self.pid}"


def may_take(held: Holder | None, owner: str, alive: bool | None) -> bool | None:
    """Whether a session may take a run. `alive`: that the holder was seen to be, None if nobody has watched yet. None:
    only watching can tell."""
    if held is None or held.owner == owner:
        return True
    return None if alive is None else not alive


def read(folder: Path) -> tuple[Holder | None, int]:
    """What the file says, and when (ns, by whatever clock) it was touched; (None, 0) if there is none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        descriptor = os.open(folder / layout.LEASE, os.O_RDONLY)  # opening asks a network file system for the newest
    except FileNotFoundError:
        return None, 0
    try:
        return parsed(os.read(descriptor, 4096)), os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def parsed(text: bytes) -> Holder:
    """What somebody wrote; somebody unknown if it makes no sense (it is just being written, say)."""
    try:
        said = json.loads(text)
        return Holder(str(said["owner"]), int(said["epoch"]), str(said["host"]), int(said["pid"]))
    except (ValueError, KeyError, TypeError):
        return Holder("?", 0, "an unknown host", 0)


def claim(folder: Path, owner: str) -> Holder:
    """Take a run for a session, unless another one that lives has it; what stands there now.

    Raises:
        Held: it has. UserError: the file cannot be written or read.
    """
    try:
        held, touched = read(folder)
        allowed = may_take(held, owner, None)
        end = time.monotonic() + WATCH
        while allowed is None and time.monotonic() < end:
            time.sleep(BEAT / 5)
            held, now = read(folder)
            if now != touched:
                allowed = may_take(held, owner, True)
        if allowed is False:
            assert held is not None
            raise Held(
                f"run {folder.name} is running now {held.words()}: it gave a sign of life a moment ago",
                "end it first (shoal stop), or choose another run_id",
            )
        return put(folder, owner, held)
    except OSError as error:
        raise UserError(f"{folder / layout.LEASE}: {error.strerror or error}", "name another storage") from error


def put(folder: Path, owner: str, before: Holder | None) -> Holder:
    """Write this process's name into the file.

    Raises:
        Held: another was faster. OSError: it cannot be written.
    """
    mine = Holder(owner, 0 if before is None else before.epoch + 1, socket.gethostname(), os.getpid())
    text = json.dumps(asdict(mine)) + "\n"
    path = folder / layout.LEASE
    if before is None:
        with contextlib.suppress(FileExistsError):  # read below
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
    else:
        replace_file(path, text, durable=False)
    now, _ = read(folder)
    if now != mine:
        raise Held(
            f"run {folder.name} was taken by another {now.words() if now else 'session'} just now", "wait for it"
        )
    return mine


def check(folder: Path, owner: str) -> None:
    """To be called before something of a session is written by others than its controller, who may be gone.

    Raises:
        LeaseLost: another session has the run.
    """
    try:
        held, _ = read(folder)
    except OSError:
        return  # it tells nothing
    if held is not None and not may_take(held, owner, alive=True):
        raise LeaseLost(f"run {folder.name} was taken by another session, {held.words()}")


class Lease:
    """A run that this process holds for a session, from now on until `release`. On a full disk it goes without the file
    if there is none, and with an older controller's of its session if there is one.

    Raises:
        Held: it is another session's.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder, self.owner = folder, owner
        self._mine: Holder | None = None
        with contextlib.suppress(OSError):
            self._mine, _ = read(folder)
            if not may_take(self._mine, owner, alive=True):
                assert self._mine is not None
                raise Held(f"run {folder.name} is another session's now, {self._mine.words()}", "this one is over")
            self._mine = put(folder, owner, self._mine)
        self._looked = time.monotonic()
        self._released = threading.Event()
        self.lost = ""
        """Who has taken it, once somebody has."""
        self.succeeded = False
        """That one is another controller of the same session, and has its workers."""
        threading.Thread(target=self._beats, daemon=True, name="lease").start()

    def guard(self) -> None:
        """To be called before anything is written. Any thread.

        Raises:
            LeaseLost: it may not.
        """
        if not self.lost and time.monotonic() - self._looked > LOOK:
            self._look()
        if self.lost:
            raise LeaseLost(self.lost, succeeded=self.succeeded)

    def lose(self, words: str, *, succeeded: bool) -> None:
        """Somebody has taken it, by what was seen elsewhere."""
        if not self.lost:
            self.succeeded, self.lost = succeeded, words

    def release(self) -> None:
        """The session is over, and whoever comes next need not watch."""
        self._released.set()
        with contextlib.suppress(OSError):
            self._look()
            if not self.lost:
                (self._folder / layout.LEASE).unlink()

    def _look(self, *, touch: bool = False) -> None:
        """Notice that somebody has taken it. What cannot be read tells nothing."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._folder / layout.LEASE, os.O_RDONLY)
            try:
                held = parsed(os.read(descriptor, 4096))
                if self._mine is not None and held != self._mine:
                    succeeded = held.owner == self.owner
                    another = "controller" if succeeded else "session"
                    words = f"run {self._folder.name} was taken by another {another}, {held.words()}"
                    self.lose(words, succeeded=succeeded)
                elif touch:
                    os.utime(descriptor)  # of the very file that was read
            finally:
                os.close(descriptor)
            self._looked = time.monotonic()

    def _beats(self) -> None:
        while not self.lost and not self._released.wait(BEAT):
            self._look(touch=True)
