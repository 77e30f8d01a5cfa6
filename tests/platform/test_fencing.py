"""A worker is ended from outside, and what it was at is kept: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.names import stacks_file
from shoal.worker import stacks
from shoal.worker.fencing import fence

WORKER = "run/cell1/stage0/shard0@n2"
WAITS = """
import ctypes, threading
from shoal.worker.stacks import lend
lend({worker!r})
def asleep_in_a_collective(): threading.Event().wait()
threading.Thread(target=asleep_in_a_collective, daemon=True).start()
print("there", flush=True)
"""
AT_EASE = WAITS + "threading.Event().wait()"
HANGS_IN_C = WAITS + "ctypes.PyDLL(None).pause(); ctypes.PyDLL(None).pause()"
"""With Python's lock, also after a first signal."""
PATIENT = "from shoal.worker import fencing, stacks; stacks.LIMIT, stacks.STILL = 60.0, 20\n"
BY_SPY, BY_ITSELF = "Read from its memory by py-spy", "It said itself"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be slow."""
    monkeypatch.setattr(stacks, "LIMIT", 60.0)
    monkeypatch.setattr(stacks, "STILL", 20)


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as one:
        try:
            assert one.stdout is not None
            assert one.stdout.readline() == b"there\n"
            yield one
        finally:
            one.kill()


def freeze(one: subprocess.Popen[bytes]) -> None:
    """Stop it, and wait until it is: on a busy machine it still runs when the signal has been sent."""
    one.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, one.pid, os.WSTOPPED)


def told(folder: Path, pid: int) -> str:
    text = (folder / stacks_file(WORKER, pid)).read_text()
    assert text.startswith(f"{WORKER}, process {pid}\n")
    return text


@pytest.mark.parametrize("code", [AT_EASE, HANGS_IN_C])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_worker_is_ended_and_its_stacks_are_kept(tmp_path: Path, code: str, frozen: bool) -> None:
    """Whatever it does, or does not: py-spy reads its memory."""
    with process(code.format(worker=WORKER)) as one:
        if frozen:
            freeze(one)
        fence(one.pid, WORKER, tmp_path, str(tmp_path))
        assert one.wait() == -signal.SIGKILL
    text = told(tmp_path, one.pid)
    assert BY_SPY in text
    assert "asleep_in_a_collective (<string>:5)" in text
    assert "Python" not in text, "its command line is nobody's business"


REFUSED = """#!/bin/sh
echo "Error: Failed to open process" >&2
echo "Caused by: Permission Denied: Try running again with elevated permissions" >&2
echo "Stack backtrace: 0: main" >&2
exit 1
"""


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Another program in the place of py-spy."""
    program = folder / "spy"
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setattr(stacks, "SPY", str(program))


@pytest.mark.parametrize("code", [AT_EASE, HANGS_IN_C])
def test_where_py_spy_may_not_a_worker_says_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    stand_in(monkeypatch, tmp_path, REFUSED)
    with process(code.format(worker=WORKER)) as one:
        fence(one.pid, WORKER, tmp_path, str(tmp_path))
        assert one.wait() == -signal.SIGKILL
    text = told(tmp_path, one.pid)
    assert "Failed to open process; Caused by: Permission Denied" in text
    assert "backtrace" not in text
    assert BY_ITSELF in text
    assert "in asleep_in_a_collective" in text


@pytest.mark.parametrize(
    ("program", "why"),
    [(REFUSED, "Permission Denied"), ("", "Exec format"), ("#!/bin/sh\nexec sleep 1000", "took more than 0.5 s")],
)
def test_one_that_is_stopped_where_py_spy_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    """It is not asked, since it hears nothing, and ended as well."""
    stand_in(monkeypatch, tmp_path, program)
    monkeypatch.setattr(stacks, "LIMIT", 0.5 if "sleep" in program else 60.0)
    with process(AT_EASE.format(worker=WORKER)) as one:
        freeze(one)
        fence(one.pid, WORKER, tmp_path, str(tmp_path))
        assert one.wait() == -signal.SIGKILL
    assert why in told(tmp_path, one.pid)
    assert "stopped says nothing" in told(tmp_path, one.pid)


def test_without_py_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "SPY", "no-such-program")
    with process(AT_EASE.format(worker=WORKER)) as one:
        fence(one.pid, WORKER, tmp_path, str(tmp_path))
        assert one.wait() == -signal.SIGKILL
    assert "it is not installed" in told(tmp_path, one.pid)
    assert BY_ITSELF in told(tmp_path, one.pid)


def test_two_neighbours_end_one_worker_and_one_of_them_keeps_its_stacks(tmp_path: Path) -> None:
    end = (
        PATIENT + f"import pathlib; fencing.fence(PID, {WORKER!r}, pathlib.Path({str(tmp_path)!r}), {str(tmp_path)!r})"
    )
    with process(AT_EASE.format(worker=WORKER)) as one:
        ends = [sys.executable, "-c", end.replace("PID", str(one.pid))]
        others = [subprocess.Popen(ends) for _ in range(2)]
        assert [other.wait() for other in others] == [0, 0]
        assert one.wait() == -signal.SIGKILL
    assert (tmp_path / stacks_file(WORKER, one.pid)).read_text().count("asleep_in_a_collective (<") == 1


def test_what_a_neighbour_has_kept_stays(tmp_path: Path) -> None:
    """Who comes when it is done ends a process in which there is nothing left to read."""
    with process(AT_EASE.format(worker=WORKER)) as one:
        kept = tmp_path / stacks_file(WORKER, one.pid)
        kept.parent.mkdir()
        kept.write_text("said before")
        fence(one.pid, WORKER, tmp_path, str(tmp_path))
        assert one.wait() == -signal.SIGKILL
    assert kept.read_text() == "said before"


def test_a_process_that_ends_itself_says_so_first(tmp_path: Path) -> None:
    ends = f"""
import os, pathlib
stacks.lend({WORKER!r})
print('there', flush=True)
fencing.fence(os.getpid(), {WORKER!r}, pathlib.Path({str(tmp_path)!r}), {str(tmp_path)!r})
"""
    with process(PATIENT + ends) as one:
        assert one.wait() == -signal.SIGKILL
    assert "fence (" in told(tmp_path, one.pid)


def test_another_process_that_was_given_the_number_is_left_alone(tmp_path: Path) -> None:
    with process(AT_EASE.format(worker="run/cell0/stage0/shard0@n2")) as one:
        fence(one.pid, WORKER, tmp_path, str(tmp_path))
        assert one.poll() is None
    assert list(tmp_path.iterdir()) == []
