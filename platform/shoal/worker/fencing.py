"""Ending another worker of this node: a frozen process obeys nothing but a signal. Before it ends, it is made to say
where its threads are.

Each worker lends its neighbours a file in memory (`lend`), into which Python writes the stacks of all threads when a
signal comes, whatever these threads wait for or hold: it is found among the descriptors of the process, by the worker's
name, so that it also says whose process that is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from shoal.names import stacks_file
from shoal_core.files import replace_file

__all__ = ["fence", "fence_soon", "lend"]

logger = logging.getLogger(__name__)
ASK = signal.SIGUSR2
"""What makes a worker write its stacks."""
LIMIT = 0.5
"""Seconds for which an answer is waited for: less than `control.orders.GRACE`."""
LOOK, STILL = 0.01, 5
"""Seconds between two looks at an answer; looks without anything new after which it is whole."""


def lend(worker: str) -> None:
    """Have this process, which is the worker's, write its stacks for whoever ends it."""
    file = os.memfd_create(title(worker))  # for as long as the process is there
    faulthandler.register(ASK, file=file, all_threads=True, chain=False)


def title(worker: str) -> str:
    """The name of a worker's file in memory; Linux takes 249 bytes."""
    return f"shoal:{worker}"[-249:]


def fence_soon(pid: int, worker: str, run: Path) -> None:
    """`fence`, in a thread of its own: an answer is waited for a moment, and the caller has others to listen to."""
    threading.Thread(target=fence, args=(pid, worker, run), daemon=True, name="fence").start()


def fence(pid: int, worker: str, run: Path) -> None:
    """End a worker of this run on this node that is taken for dead: a frozen process obeys nothing but this. Where its
    threads were is put into the run's folder `run`. It may be this process.

    Whose process it is is checked first: the pid may have been given to another meanwhile.
    """
    try:
        with borrowed(pid, worker) as file:
            if file is None and not named(pid, worker):
                return
            mine = file is not None and first(file)
            stacks = None if file is None else asked(pid, file, ask=mine)
            text = f"{worker}, process {pid}\n\n{stacks or 'It is stopped or hangs in the kernel: it did not say.'}\n"
            if pid == os.getpid():
                keep(run / stacks_file(worker, pid), text)
            os.kill(pid, signal.SIGKILL)
            if mine:
                keep(run / stacks_file(worker, pid), text)
    except OSError:
        pass  # it is gone


@contextlib.contextmanager
def borrowed(pid: int, worker: str) -> Iterator[int | None]:
    """A worker's file in memory; None if the process has none. Raises OSError: there is no such process."""
    wanted = f"/memfd:{title(worker)} (deleted)"
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(link) == wanted:
                file = os.open(link, os.O_RDONLY)
                break
    else:
        yield None
        return
    try:
        yield file
    finally:
        os.close(file)


def named(pid: int, worker: str) -> bool:
    """Whether a process has the worker's title. Raises OSError: there is no such process."""
    said = Path(f"/proc/{pid}/cmdline").read_bytes()
    return worker.encode() in said or b"WorkerActor" in said


def first(file: int) -> bool:
    """Whether nobody else asks: all workers of a node are told to end a neighbour."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def asked(pid: int, file: int, *, ask: bool) -> str:
    """What a worker says of its threads; "" if it says nothing within `LIMIT`. One that is stopped is not waited for.
    Raises OSError: it is gone."""
    if ask and not stopped(pid):
        os.kill(pid, ASK)
    size = still = 0
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and still < STILL and not stopped(pid):
        time.sleep(LOOK)
        size, before = os.fstat(file).st_size, size
        still = still + 1 if size and size == before else 0
    return os.pread(file, size, 0).decode(errors="replace")


def stopped(pid: int) -> bool:
    """Whether a process is stopped, so that no signal is heard but SIGKILL. Raises OSError: there is none."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"


def keep(path: Path, text: str) -> None:
    """Put what was said into the record's folder; that it cannot be written keeps nobody alive."""
    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, text, durable=False)
    except OSError as error:
        logger.warning("%s could not be written: %s", path, error)
