"""A worker writes nothing for a run that another session has, and waits for no folder that hangs to know it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shoal.record import lease
from shoal.worker import ownership
from shoal.worker.ownership import end_if_lost


def test_a_worker_ends_if_another_session_has_its_run(tmp_path: Path) -> None:
    lease.put(tmp_path, "one", None)
    end_if_lost(str(tmp_path), tmp_path, "one")
    with pytest.raises(SystemExit, match="taken by another session"):
        end_if_lost(str(tmp_path), tmp_path, "two")


def test_an_answer_that_comes_late_ends_it_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, ended = threading.Event(), threading.Event()

    def check(folder: Path, session: str) -> None:
        answered.wait()
        raise lease.LeaseLost("taken")

    monkeypatch.setattr(lease, "check", check)
    monkeypatch.setattr(ownership, "ANSWER", 0.0)
    monkeypatch.setattr(ownership.os, "_exit", lambda code: ended.set())
    end_if_lost(str(tmp_path), tmp_path, "one")
    assert not ended.is_set()
    answered.set()
    assert ended.wait(60.0)
