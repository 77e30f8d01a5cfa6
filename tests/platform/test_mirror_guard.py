"""The mirror ends soon after a signal, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shoal.tracking import __main__ as tracking


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # how the guard ends here
def test_a_signal_is_obeyed_while_mlflow_is_still_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    codes: list[int] = []

    class Slow(ModuleType):
        """A module that takes until the process has ended to import."""

        def __getattr__(self, name: str) -> Any:
            assert ended.wait(30)
            raise ImportError(name)

    def end(code: int) -> None:
        codes.append(code)
        ended.set()
        raise SystemExit  # of the guard's thread

    monkeypatch.setitem(sys.modules, "shoal.tracking.mirror", Slow("shoal.tracking.mirror"))
    monkeypatch.setattr(tracking.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(tracking.signal, "set_wakeup_fd", lambda file, **how: None)
    monkeypatch.setattr(os, "_exit", end)
    stop = tracking.Stop(attended=False)
    stop.terminated = float("-inf")  # long ago
    with pytest.raises(ImportError):
        tracking.mirror(tmp_path, "sqlite://", "shoal", stop, attended=False, grace=0.0)
    assert codes == [tracking.GAVE_UP]


WAITS_FOR_A_LOCK = """
import sqlite3, sys, threading
from pathlib import Path
from shoal.tracking import __main__ as tracking

tracking.TERMINATED = 0.0
stop = tracking.Stop(attended=False)
threading.Thread(target=tracking.guard, args=(Path(sys.argv[1]), stop, lambda now: False), daemon=True).start()
other = sqlite3.connect(sys.argv[2], isolation_level=None)
other.execute("begin exclusive")
print("locked", flush=True)
sqlite3.connect(sys.argv[2], timeout=60).execute("create table steps (step)")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_obeyed_while_a_locked_database_keeps_the_main_thread(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-c", WAITS_FOR_A_LOCK, str(tmp_path), str(tmp_path / "mlflow.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        process.send_signal(number)
        assert process.wait(120) == tracking.GAVE_UP
