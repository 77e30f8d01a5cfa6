"""Faults that pass by themselves: each a context manager that does it and undoes it, and who leaves them in time."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from shoal.record import slow
from shoal_core.errors import UserError

__all__ = ["Passing", "frozen", "full_disk", "half_speed", "send", "slow_disk"]

SLICE = 0.02
"""Seconds that a process at half speed stands still, and that it runs, in turn."""


def send(pid: int, number: int) -> None:
    """Signal a process; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pid, signal.SIGCONT)


@contextlib.contextmanager
def half_speed(pid: int) -> Iterator[None]:
    """SIGSTOP and SIGCONT in turn, for `SLICE` each."""
    over = threading.Event()

    def take_turns() -> None:
        while not over.is_set():
            with frozen(pid):
                time.sleep(SLICE)
            over.wait(SLICE)

    turns = threading.Thread(target=take_turns, daemon=True, name="half-speed")
    turns.start()
    try:
        yield
    finally:
        over.set()
        turns.join()


@contextlib.contextmanager
def full_disk(pids: Iterable[int]) -> Iterator[None]:
    """Let no file of these processes grow: the kernel refuses what they write, wherever the file lies. It says EFBIG
    where a full disk says ENOSPC; Python and torch raise the same kind of error for both. Others write on."""
    before: dict[int, tuple[int, int]] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
                before[pid] = (soft, hard)
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def slow_disk(run: Path, pause: float, seconds: float) -> Iterator[None]:
    """Let each write of a run's record, and each checkpoint, take `pause` seconds longer (`shoal.record.slow`)."""
    slow.begin(run, pause, seconds)
    try:
        yield
    finally:
        slow.end(run)


class Passing:
    """Faults under way, each undone after `seconds`. One that is done again while it lasts changes nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._under_way: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()

    def begin(self, what: str, fault: Callable[[], AbstractContextManager[None]]) -> None:
        """Do a fault, which is known as `what`, and undo it later.

        Raises:
            UserError, OSError: it cannot be done.
        """
        with self._lock:
            if what in self._under_way or self._over.is_set():
                return
            until = contextlib.ExitStack()
            until.enter_context(fault())
            thread = threading.Thread(target=self._wait, args=(what, until), daemon=True, name=what)
            self._under_way[what] = thread
        thread.start()

    def _wait(self, what: str, until: contextlib.ExitStack) -> None:
        self._over.wait(self.seconds)
        with self._lock:
            with contextlib.suppress(UserError):  # the cluster was taken down
                until.close()
            del self._under_way[what]

    def end(self) -> None:
        """Undo what lasts still, and begin nothing any more."""
        self._over.set()
        with self._lock:
            left = list(self._under_way.values())
        for thread in left:
            thread.join()
