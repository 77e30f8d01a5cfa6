"""A worker is ended from outside, and what it was at is kept: real processes, real signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.names import stacks_file
from shoal.worker import fencing
from shoal.worker.fencing import fence

WORKER = "run/cell1/stage0/shard0@n2"
WAITS = """
import threading
from shoal.worker.fencing import lend
lend({worker!r})
def asleep_in_a_collective(): threading.Event().wait()
threading.Thread(target=asleep_in_a_collective, daemon=True).start()
print("there", flush=True)
threading.Event().wait()
"""


PATIENT = "from shoal.worker import fencing; fencing.LIMIT, fencing.STILL = 60.0, 20\n"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be slow."""
    monkeypatch.setattr(fencing, "LIMIT", 60.0)
    monkeypatch.setattr(fencing, "STILL", 20)


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as one:
        try:
            assert one.stdout is not None
            assert one.stdout.readline() == b"there\n"
            yield one
        finally:
            one.kill()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_worker_is_ended_and_its_stacks_are_kept(tmp_path: Path, frozen: bool) -> None:
    with process(WAITS.format(worker=WORKER)) as one:
        if frozen:
            one.send_signal(signal.SIGSTOP)
        fence(one.pid, WORKER, tmp_path)
        assert one.wait() == -signal.SIGKILL
    text = (tmp_path / stacks_file(WORKER, one.pid)).read_text()
    assert text.startswith(f"{WORKER}, process {one.pid}\n")
    assert ("asleep_in_a_collective" in text) == (not frozen)
    assert ("It is stopped" in text) == frozen


def test_two_neighbours_end_one_worker_and_one_of_them_keeps_its_stacks(tmp_path: Path) -> None:
    end = PATIENT + f"import pathlib; fencing.fence(PID, {WORKER!r}, pathlib.Path({str(tmp_path)!r}))"
    with process(WAITS.format(worker=WORKER)) as one:
        ends = [sys.executable, "-c", end.replace("PID", str(one.pid))]
        others = [subprocess.Popen(ends) for _ in range(2)]
        assert [other.wait() for other in others] == [0, 0]
        assert one.wait() == -signal.SIGKILL
    assert (tmp_path / stacks_file(WORKER, one.pid)).read_text().count("asleep_in_a_collective") == 1


def test_a_process_that_ends_itself_says_so_first(tmp_path: Path) -> None:
    ends = f"""
import os, pathlib
fencing.lend({WORKER!r})
print('there', flush=True)
fencing.fence(os.getpid(), {WORKER!r}, pathlib.Path({str(tmp_path)!r}))
"""
    with process(PATIENT + ends) as one:
        assert one.wait() == -signal.SIGKILL
    assert "in fence" in (tmp_path / stacks_file(WORKER, one.pid)).read_text()


def test_another_process_that_was_given_the_number_is_left_alone(tmp_path: Path) -> None:
    with process(WAITS.format(worker="run/cell0/stage0/shard0@n2")) as one:
        fence(one.pid, WORKER, tmp_path)
        assert one.poll() is None
    assert list(tmp_path.iterdir()) == []
