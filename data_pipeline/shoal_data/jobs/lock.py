"""One job at a time in a folder; whoever comes second is told who works there.

The lock is `flock` on a file in the folder, which ends with its holder, however that dies, and holds between machines
on NFSv4. Where a file system keeps such locks to one machine, or has none, the holder's signs of life in the same
file decide: whoever finds another's name there watches for some seconds whether it still writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal_core.errors import UserError
from shoal_data.files import explain

__all__ = ["LOCK", "held"]

LOCK = "lock"
_BEAT = 4.0  # seconds between two signs of life
_WATCH = 15.0  # a holder elsewhere that gives none for so long is dead
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other jobs out of `folder`, which is made if need be.

    Raises:
        UserError: another job is at work there, or the folder cannot be written to.
    """
    path = folder / "job" / LOCK
    try:
        handle = _take(path, folder)
    except OSError as error:
        raise explain(error, error.filename or path) from error
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(handle, over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with contextlib.suppress(OSError):  # unlocked all the same
            path.unlink(missing_ok=True)
            path.parent.rmdir()  # where the job was refused and left nothing else
        os.close(handle)


def _take(path: Path, folder: Path) -> int:
    """An open file that holds the lock."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            alone = _flock(handle)
            if alone is False:
                raise _refusal(folder, _holder(path))
            before = _holder(path)
            elsewhere = bool(before) and (alone is None or before.get("host") != socket.gethostname())
            if elsewhere and _lives(path, before):
                raise _refusal(folder, before)
            if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
                os.close(handle)  # its last holder removed it meanwhile
                continue
            _write(handle, 0)
            if alone is None and _overwritten(path):
                raise _refusal(folder, _holder(path))
            return handle
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(handle)
            raise


def _flock(handle: int) -> bool | None:
    """Whether the lock is ours now; None where there are no such locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _lives(path: Path, before: dict[str, str]) -> bool:
    """Whether the holder that is named in the file gives a sign of life."""
    who = f"process {before.get('pid')} on {before.get('host')}"
    print(f"{path.parent.parent}: {who} was at work here; watching for {_WATCH:.0f} s if it lives", file=sys.stderr)
    end = time.monotonic() + _WATCH
    while time.monotonic() < end:
        time.sleep(_BEAT / 4)
        now = _holder(path)  # opened anew each time: NFS shows what others wrote when a file is opened
        if now and now != before:
            return True
        if not path.exists():
            return False
    return False


def _overwritten(path: Path) -> bool:
    """Whether another wrote its name over ours, having begun at the same moment where there are no locks."""
    time.sleep(_BEAT / 4)
    now = _holder(path)
    return (now.get("host"), now.get("pid")) != (socket.gethostname(), str(os.getpid()))


def _beat(handle: int, over: threading.Event) -> None:
    beats = 0
    while not over.wait(_BEAT):
        beats += 1
        with contextlib.suppress(OSError):  # the work itself will tell of a broken disk
            _write(handle, beats)


_SINCE = time.strftime("%Y-%m-%d %H:%M:%S")


def _write(handle: int, beats: int) -> None:
    word = {"host": socket.gethostname(), "pid": str(os.getpid()), "since": _SINCE, "beats": f"{beats:012d}"}
    content = json.dumps(word).encode()
    os.ftruncate(handle, len(content))
    os.pwrite(handle, content, 0)
    os.fsync(handle)


def _holder(path: Path) -> dict[str, str]:
    """What the holder wrote of itself; empty if there is nothing to read."""
    try:
        word = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return word if isinstance(word, dict) else {}


def _refusal(folder: Path, holder: dict[str, str]) -> UserError:
    who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder.get("pid") else "just begun"
    return UserError(
        f"{folder}: another job is at work there ({who})",
        "wait for its end, or end it first, and run this command again; nothing was touched",
    )
