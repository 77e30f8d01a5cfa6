"""Where the threads of a worker of this node are: read from its memory by py-spy, or said by itself.

py-spy looks at a process that is stopped or whose interpreter hangs as at any other, if the system lets it (ptrace).
Where it does not, the worker is asked: each lends its neighbours a file in memory (`lend`), into which Python writes
the stacks of all threads when a signal comes, whatever these threads wait for or hold. It is found among the
descriptors of the process, by the worker's name, so that it also says whose process that is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LIMIT", "LOOK", "borrowed", "lend", "stacks_of"]

ASK = signal.SIGUSR2
"""What makes a worker write its stacks."""
LIMIT = 0.8
"""Seconds for which either is waited for: both together less than `control.orders.GRACE`."""
LOOK, STILL = 0.01, 5
"""Seconds between two looks at an answer; looks without anything new after which it is whole."""
SPY = "py-spy"
"""Comes with Ray."""


class Unread(Exception):
    """py-spy read nothing: why, in a line."""


def lend(worker: str) -> None:
    """Have this process, which is the worker's, write its stacks for whoever ends it."""
    file = os.memfd_create(title(worker))  # for as long as the process is there
    faulthandler.register(ASK, file=file, all_threads=True, chain=False)


def title(worker: str) -> str:
    """The name of a worker's file in memory; Linux takes 249 bytes."""
    return f"shoal:{worker}"[-249:]


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


def stacks_of(pid: int, file: int) -> str:
    """Where the threads of a worker are, and how that is known. `file`: what it lends. Raises OSError: it is gone."""
    try:
        return f"Read from its memory by py-spy:\n\n{spied(pid)}"
    except Unread as error:
        why = f"py-spy could not read its memory ({error})"
    if stopped(pid):
        return f"{why}, and a process that is stopped says nothing.\n"
    if said := asked(pid, file):
        return f"{why}. It said itself:\n\n{said}"
    return f"{why}, and it said nothing when it was asked.\n"


def spied(pid: int) -> str:
    """What py-spy says of a process, which it does not pause: it may be stopped. Raises Unread."""
    program = shutil.which(SPY, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if program is None:
        raise Unread("it is not installed")
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        spy = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    except OSError as error:
        raise Unread(str(error)) from None
    try:
        said, wrong = spy.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        spy.kill()  # and not waited for: it may hang in the kernel with the process that it reads
        raise Unread(f"it took more than {LIMIT:g} s") from None
    _, thread, threads = said.partition("\nThread ")  # what stands before is the command line, which may tell secrets
    if spy.returncode or not thread:
        lines = wrong.partition("Stack backtrace")[0].split("\n")
        raise Unread("; ".join(line.strip() for line in lines if line.strip()) or "it found no thread")
    return f"Thread {threads}"


def asked(pid: int, file: int) -> str:
    """What a worker says of its threads; "" if it says nothing within `LIMIT`. Raises OSError: it is gone."""
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
