"""`python -m shoal.tracking RUN_DIR`: mirror a record to MLflow until the run has ended and all of it is there."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from shoal import log
from shoal.printable import printable
from shoal.record import read
from shoal.record.masking import mask_text
from shoal.tracking import END, LOCK, recorded_uri
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal.tracking.mirror import Mirror

logger = logging.getLogger(
    "shoal.tracking"
)  # this module is called __main__: outside of `log`, which masks credentials
POLL = 1.0  # seconds between looks at the record
GRACE = 15.0  # seconds for the rest, once told to end or by hand, from when the store last took something
IN_BACKGROUND = 600.0  # the same for what goes on when the run is over
TERMINATED = 5.0  # seconds from SIGTERM or Ctrl-C to the end, whatever the store is doing
STUCK = 120.0  # seconds that one call to the store may take, once all that is there should be sent
LINGER = 300.0  # seconds that an attended mirror waits, after the run has ended, to be told so
WORST_DELAY = 30.0  # seconds between tries of a store that does not answer
GAVE_UP = 3


class Stop:
    """Why the mirror should end: told to (by its parent, SIGTERM or SIGINT), or its parent is gone."""

    def __init__(self, attended: bool) -> None:
        self.told = self.orphaned = False
        self.terminated: float | None = None
        """When a signal asked for the end (monotonic)."""
        self._attended = attended
        self._came, comes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(comes, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        self.terminated = self.terminated or time.monotonic()

    def listen(self, seconds: float) -> None:
        """Wait so long for a signal, in any thread. Python runs its handlers in the main one only, and not before a
        database that is locked, or does not answer, has let go of it."""
        if select.select([self._came], [], [], seconds)[0]:
            self._tell(os.read(self._came, 1)[0], None)

    def wait(self, seconds: float) -> bool:
        """Wait for a reason to end, at most `seconds`; whether there is one."""
        until = time.monotonic() + seconds
        while not (self.told or self.orphaned):
            left = until - time.monotonic()
            pause = max(0.0, min(left, 0.1))
            if not self._attended:
                time.sleep(pause)
            elif select.select([sys.stdin], [], [], pause)[0]:
                said = os.read(sys.stdin.fileno(), 64)
                self.told = said.startswith(END)
                self.orphaned = not self.told
            if left <= 0:
                break
        return self.told or self.orphaned


def give_up(path: Path) -> None:
    again = f"python -m shoal.tracking {shlex.quote(str(path))}"
    logger.warning("gave up; what is missing can be sent later with: %s", again)


def guard(path: Path, stop: Stop, stuck: Callable[[float], bool]) -> None:
    """End the process when a call to the store does not come back (MLflow's own clients retry for minutes, deaf), or
    when it is still importing MLflow. `stuck(now)`: whether a call takes too long."""
    while True:
        stop.listen(0.2)
        now = time.monotonic()
        if stuck(now) or (stop.terminated is not None and now > stop.terminated + TERMINATED):
            give_up(path)
            os._exit(GAVE_UP)


def mirror(path: Path, uri: str, experiment: str, stop: Stop, attended: bool, grace: float) -> int:
    """Follow the record to its end. Returns the exit code: 0 when MLflow has all there is."""
    record: Mirror | None = None
    stopping = threading.Event()

    def stuck(now: float) -> bool:
        return stopping.is_set() and record is not None and now > record.progress + STUCK

    threading.Thread(target=guard, args=(path, stop, stuck), daemon=True, name="guard").start()
    from shoal.tracking.mirror import Mirror  # takes seconds, on a busy machine minutes; a signal may come meanwhile

    record = Mirror(path, uri, experiment)
    delay, ended_at, asked_at, failing = 0.0, None, 0.0, False
    while True:
        now = time.monotonic()
        if record.ended is not None and ended_at is None:
            ended_at = now
        told = stop.wait(0)
        if told or (ended_at is not None and (not attended or now > ended_at + LINGER)):
            asked_at = asked_at or now
            stopping.set()
        try:
            record.sync()
            if stopping.is_set():
                if stop.told or record.ended is not None:
                    record.close()
                return 0
            if failing:
                logger.warning("MLflow takes the record again")
            delay, failing = POLL, False
        except UserError:  # a damaged record does not mend itself
            raise
        except Exception as error:  # whatever the store raises: it may be back later, and the record waits on the file
            if not failing:
                logger.warning("MLflow does not take the record, training goes on: %s", in_a_line(error))
            failing = True
            if stopping.is_set() and time.monotonic() > max(asked_at, record.progress) + grace:
                give_up(record.path)
                return GAVE_UP
            delay = min(WORST_DELAY, max(POLL, 2 * delay))
        if not stopping.is_set():
            stop.wait(delay)
        else:
            time.sleep(POLL)


def in_a_line(error: Exception) -> str:
    """What a store raised: it may be a page of HTML."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def locked(file: TextIO) -> bool:
    """Take the lock on `file` if it is free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_database(uri: str) -> None:
    """What can be wrong with a database in a file before MLflow tries it, again and again.

    Raises:
        UserError: it is a folder, no database, or its folder is not there.
    """
    if not uri.startswith("sqlite:///"):
        return
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if file.is_dir():
        raise UserError(f"{file} is a folder, MLflow's database should be a file", "move it away, or set mlflow.uri")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} is no folder: MLflow's database cannot be there", "set mlflow.uri")
    try:
        with file.open("rb") as database:
            head = database.read(16)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})", "mend its rights, or set mlflow.uri") from error
    if head not in (b"", b"SQLite format 3\0"):
        raise UserError(f"{file} is no SQLite database", "move it away: the record can be sent again into a new one")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m shoal.tracking", description=__doc__)
    parser.add_argument("path", type=Path, metavar="RUN_DIR")
    parser.add_argument("--experiment", help="MLflow experiment; by default the run's own")
    parser.add_argument("--attended", action="store_true", help="end with the parent process, or when it says so")
    parser.add_argument("--background", action="store_true", help="return at once, and go on for some minutes")
    arguments = parser.parse_args()
    if not arguments.path.is_dir():
        print(f"shoal.tracking: there is no run directory {printable(arguments.path)}", file=sys.stderr)
        return 2
    if arguments.background:
        if os.fork():
            return 0
        os.setsid()
    log.begin(f"{arguments.path.absolute().name}/mirror")
    stop = Stop(arguments.attended)
    os.nice(10)
    os.environ.update(
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_HTTP_REQUEST_TIMEOUT="10",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",  # tries again by itself, at its own pace
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",  # it would print a password in the URI
    )
    uri = recorded_uri(arguments.path)
    check_database(uri)
    experiment = arguments.experiment or (read.config(arguments.path).get("mlflow") or {}).get("experiment") or "shoal"
    with open(arguments.path / LOCK, "a") as lock:
        waited = False
        while not locked(lock):  # one mirror a record: an earlier controller's may still be ending
            if not waited:
                logger.info("another mirror is at work on this record: waiting for it")
            waited = True
            if stop.wait(0.2):
                return GAVE_UP
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        grace = IN_BACKGROUND if arguments.background else GRACE
        return mirror(arguments.path, uri, str(experiment), stop, arguments.attended, grace)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"shoal.tracking: {printable(mask_text(f'{error.problem}; {error.remedy}'))}", file=sys.stderr)
        sys.exit(2)
