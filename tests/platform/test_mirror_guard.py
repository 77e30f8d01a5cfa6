"""The mirror ends soon after a signal, whatever it is doing."""

from __future__ import annotations

import os
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
    monkeypatch.setattr(os, "_exit", end)
    stop = tracking.Stop(attended=False)
    stop.terminated = float("-inf")  # long ago
    with pytest.raises(ImportError):
        tracking.mirror(tmp_path, "sqlite://", "shoal", stop, attended=False, grace=0.0)
    assert codes == [tracking.GAVE_UP]
