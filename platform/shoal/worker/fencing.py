"""Ending a worker of this node: a frozen process obeys nothing but a signal. First it is put on record where
its threads are (`stacks`)."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
from pathlib import Path

from shoal.names import stacks_file
from shoal.record.beside import publish
from shoal.worker import stacks
from shoal_core.errors import UserError
from shoal_core.files import replace_file

__all__ = ["fence", "fence_soon"]

logger = logging.getLogger(__name__)
SENT = 5.0
"""Seconds that a process which ends itself has to bring its own stacks to a store."""


def fence_soon(pid: int, worker: str, run: Path, place: str) -> None:
    """`fence`, in a thread of its own: an answer is waited for a moment, and the caller has others to listen to."""
    threading.Thread(target=fence, args=(pid, worker, run, place), daemon=True, name="fence").start()


def fence(pid: int, worker: str, run: Path, place: str) -> None:
    """End a worker of this run on this node that is taken for dead: a frozen process obeys nothing but this. Where its
    threads were is put into the run's folder `run`, and to its address `place`. It may be this process.

    Whose process it is is checked first: the pid may be another's by now, or of another node.
    """
    try:
        with stacks.borrowed(pid, worker) as file:
            if file is None:
                return
            name = stacks_file(worker, pid)
            path = run / name
            if not first(file) or path.exists():  # who comes late may find it killed, and nothing in it
                until_done(file)
                os.kill(pid, signal.SIGKILL)
                return
            text = f"{worker}, process {pid}\n\n{stacks.stacks_of(pid, file)}"
            if pid == os.getpid():
                keep(path, text)
                sending = threading.Thread(target=send, args=(place, run, name), daemon=True)
                sending.start()
                sending.join(SENT)
            os.kill(pid, signal.SIGKILL)
            keep(path, text)
            send(place, run, name)
    except OSError:
        pass  # it is gone


def first(file: int) -> bool:
    """Whether nobody else looks at the worker whose file this is: all of a node are told to end a neighbour."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def until_done(file: int) -> None:
    """Wait until whoever looks has done so, or takes too long."""
    end = time.monotonic() + 2 * stacks.LIMIT
    while time.monotonic() < end and not first(file):
        time.sleep(stacks.LOOK)


def keep(path: Path, text: str) -> None:
    """Put what was said into the record's folder; that it cannot be written keeps nobody alive."""
    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, text, durable=False)
    except OSError as error:
        logger.warning("%s could not be written: %s", path, error)


def send(place: str, run: Path, name: str) -> None:
    """Bring what was kept to the run's address. Whatever fails, it stays on this node."""
    try:
        publish(place, run, name)
    except (OSError, UserError) as error:
        logger.warning("%s stays on this node: %s", run / name, error)
