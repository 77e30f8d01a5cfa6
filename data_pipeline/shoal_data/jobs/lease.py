"""One job at a time at a place on a store: the lock is an object that its holder writes anew every few seconds.

It is written on condition that it still is what this job saw, which of several can be true for one alone. Whoever finds
another's watches for some seconds whether it is written; a holder that was taken for dead finds that at its next sign.
What both wrote meanwhile is the same bytes, since the job is the same or was refused.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from shoal_core.errors import StoreError, UserError
from shoal_data.place import Remote

__all__ = ["BEAT", "WATCH", "leased", "refusal", "said", "sign_of_life", "watched"]

BEAT = 4.0
"""Seconds between two signs of life."""
WATCH = 15.0
"""A holder elsewhere that gives none for so long is dead."""
_SINCE = time.strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def leased(lock: Remote, folder: Remote) -> Iterator[None]:
    """Keep other jobs out of `folder` by the object `lock`.

    Raises:
        UserError: another job is at work there, or this store cannot keep two apart.
        StoreError: another took it meanwhile; or the store does not answer.
    """
    holding = _Holding(lock, _take(lock, folder))
    over = threading.Event()
    beating = threading.Thread(target=holding.beat, args=(over,), name="lease", daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        if not holding.lost:
            with suppress(StoreError):  # it is taken for dead in a while
                lock.unlink()
    if holding.lost:
        raise StoreError(
            f"{folder}: another job took it over, having heard nothing of this one for {WATCH:.0f} s",
            "let that one finish; nothing is lost, since both write the same",
        )


class _Holding:
    """The lock, while it is this job's. `lost`: it is another's by now."""

    def __init__(self, lock: Remote, version: str) -> None:
        self._lock, self._version, self.lost = lock, version, False

    def beat(self, over: threading.Event) -> None:
        """Give signs of life until `over`, or until the lock is lost."""
        beats = 0
        while not (over.wait(BEAT) or self.lost):
            beats += 1
            with suppress(StoreError):  # the work itself will tell of a store that is gone
                version = self._lock.store.swap(self._lock.path, sign_of_life(beats), self._version)
                self.lost = version is None
                self._version = version or self._version


def _take(lock: Remote, folder: Remote) -> str:
    """The version of the lock that is now this job's."""
    store, seen = lock.store, None
    while True:
        if version := store.swap(lock.path, sign_of_life(0), seen):
            return version
        try:
            seen, holder = store.stat(lock.path).version, said(lock.read_bytes())
            watched(folder, holder)
            end = time.monotonic() + WATCH
            while time.monotonic() < end:
                time.sleep(BEAT / 4)
                if store.stat(lock.path).version != seen:
                    raise refusal(folder, holder)
        except FileNotFoundError:  # its holder is done
            seen = None


def sign_of_life(beats: int) -> bytes:
    """What a holder writes of itself into its lock: another text each time."""
    word = {"host": socket.gethostname(), "pid": str(os.getpid()), "since": _SINCE, "beats": f"{beats:012d}"}
    return json.dumps(word).encode()


def said(content: bytes) -> dict[str, str]:
    """What a holder wrote of itself; empty if it cannot be read."""
    try:
        word = json.loads(content)
    except ValueError:
        return {}
    return word if isinstance(word, dict) else {}


def watched(folder: object, holder: dict[str, str]) -> None:
    """Say for what the job waits now."""
    print(f"{folder}: {words(holder)} was at work here; watching for {WATCH:.0f} s if it lives", file=sys.stderr)


def words(holder: dict[str, str]) -> str:
    """Who holds a lock, by what it says of itself: others wrote that, and nothing in it acts on a terminal."""
    told = f"process {str(holder.get('pid'))[:80]} on {str(holder.get('host'))[:80]}"
    return told if told.isprintable() else ascii(told)


def refusal(folder: object, holder: dict[str, str]) -> UserError:
    """What is said to who comes second."""
    who = f"{words(holder)}, since {holder.get('since')}" if holder.get("pid") else "just begun"
    return UserError(
        f"{folder}: another job is at work there ({who})",
        "wait for its end, or end it first, and run this command again; nothing was touched",
    )
