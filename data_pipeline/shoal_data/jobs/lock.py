"""One job at a time in a folder; whoever comes second is told who works there.

The lock is `flock` on a file in the folder, which ends with its holder, however that dies, and holds between machines
on NFSv4. Where a file system keeps such locks to one machine, or has none, the holder's signs of life in the same
file decide: whoever finds another's name there watches for some seconds whether it still writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from shoal_data.files import explain
from shoal_data.jobs.lease import BEAT, WATCH, leased, refusal, said, sign_of_life, watched
from shoal_data.place import Place, Remote

__all__ = ["LOCK", "held"]

LOCK = "lock"
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def held(folder: Place) -> AbstractContextManager[None]:
    """Keep other jobs out of `folder`, which is made if need be.

    Raises:
        UserError: another job is at work there, or the folder cannot be written to.
        StoreError: another took the place on a store meanwhile, since it heard nothing of this job for long.
    """
    return leased(folder / "job" / LOCK, folder) if isinstance(folder, Remote) else _held(folder)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
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
                raise refusal(folder, _holder(path))
            before = _holder(path)
            elsewhere = bool(before) and (alone is None or before.get("host") != socket.gethostname())
            if elsewhere and _lives(path, before):
                raise refusal(folder, before)
            if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
                os.close(handle)  # its last holder removed it meanwhile
                continue
            _write(handle, 0)
            if alone is None and _overwritten(path):
                raise refusal(folder, _holder(path))
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
    watched(path.parent.parent, before)
    end = time.monotonic() + WATCH
    while time.monotonic() < end:
        time.sleep(BEAT / 4)
        now = _holder(path)  # opened anew each time: NFS shows what others wrote when a file is opened
        if now and now != before:
            return True
        if not path.exists():
            return False
    return False


def _overwritten(path: Path) -> bool:
    """Whether another wrote its name over ours, having begun at the same moment where there are no locks."""
    time.sleep(BEAT / 4)
    now = _holder(path)
    return (now.get("host"), now.get("pid")) != (socket.gethostname(), str(os.getpid()))


def _beat(handle: int, over: threading.Event) -> None:
    beats = 0
    while not over.wait(BEAT):
        beats += 1
        with contextlib.suppress(OSError):  # the work itself will tell of a broken disk
            _write(handle, beats)


def _write(handle: int, beats: int) -> None:
    content = sign_of_life(beats)
    os.ftruncate(handle, len(content))
    os.pwrite(handle, content, 0)
    os.fsync(handle)


def _holder(path: Path) -> dict[str, str]:
    """What the holder wrote of itself; empty if there is nothing to read."""
    try:
        return said(path.read_bytes())
    except OSError:
        return {}
