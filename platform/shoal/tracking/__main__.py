"""`python -m shoal.tracking RUN_DIR`: mirror a record to MLflow until the run has ended and all of it is there."""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TextIO

from shoal.errors import UserError
from shoal.record import read
from shoal.record.masking import mask_text
from shoal.tracking import END, URI_VARIABLE, default_uri

POLL = 1.0  # seconds between looks at the record
GRACE = 15.0  # seconds for the rest, once told to end
LINGER = 300.0  # seconds that an attended mirror waits, after the run has ended, to be told so
WORST_DELAY = 30.0  # seconds between tries of a store that does not answer
GAVE_UP = 3


class Stop:
    """Why the mirror should end: told to (by its parent, SIGTERM or SIGINT), or its parent is gone."""

    def __init__(self, attended: bool) -> None:
        self.told = self.orphaned = False
        self._attended = attended
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.told = True

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


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), mask_text(text), flush=True)


def mirror(path: Path, uri: str, experiment: str, stop: Stop, attended: bool) -> int:
    """Follow the record to its end. Returns the exit code: 0 when MLflow has all there is."""
    from shoal.tracking.mirror import Mirror  # MLflow takes seconds to import; a signal may come before

    record = Mirror(path, uri, experiment)
    delay, ended_at, deadline = 0.0, None, None
    while True:
        now = time.monotonic()
        if record.ended is not None and ended_at is None:
            ended_at = now
        stopping = stop.wait(0)
        if record.ended is not None and ended_at is not None:
            stopping = stopping or not attended or now > ended_at + LINGER
        if stopping and deadline is None:
            deadline = now + GRACE
        try:
            record.sync()
            if stopping:
                if stop.told or record.ended is not None:
                    record.close()
                return 0
            delay = POLL
        except UserError:  # a damaged record does not mend itself
            raise
        except Exception as error:  # whatever the store raises: it may be back later, and the record waits on the file
            say(f"MLflow does not take the record: {type(error).__name__}: {str(error)[:300]}")
            if deadline is not None and now > deadline:
                say("gave up; what is missing can be sent later with: python -m shoal.tracking RUN_DIR")
                return GAVE_UP
            delay = min(WORST_DELAY, max(POLL, 2 * delay))
        if deadline is None:
            stop.wait(delay)
        else:
            time.sleep(POLL)


def locked(file: TextIO) -> bool:
    """Take the lock on `file` if it is free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m shoal.tracking", description=__doc__)
    parser.add_argument("path", type=Path, metavar="RUN_DIR")
    parser.add_argument("--experiment", help="MLflow experiment; by default the run's own")
    parser.add_argument("--attended", action="store_true", help="end with the parent process, or when it says so")
    arguments = parser.parse_args()
    stop = Stop(arguments.attended)
    os.nice(10)
    os.environ.update(
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_HTTP_REQUEST_TIMEOUT="10",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",  # tries again by itself, at its own pace
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",  # it would print a password in the URI
    )
    if not arguments.path.is_dir():
        print(f"shoal.tracking: there is no run directory {arguments.path}", file=sys.stderr)
        return 2
    settings = read.config(arguments.path).get("mlflow") or {}
    uri = os.environ.get(URI_VARIABLE) or settings.get("uri") or default_uri(arguments.path)
    experiment = arguments.experiment or settings.get("experiment") or "shoal"
    with open(arguments.path / ".tracking.lock", "w") as lock:
        while not locked(lock):  # one mirror a record: an earlier controller's may still be ending
            if stop.wait(0.2):
                return GAVE_UP
        return mirror(arguments.path, uri, experiment, stop, arguments.attended)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        say(f"shoal.tracking: {error}")
        sys.exit(2)
