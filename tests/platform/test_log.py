"""The log of a run's processes: whose words they are, at which step, without secrets; no failure of its own."""

from __future__ import annotations

import errno
import io
import logging
import sys

import pytest

from shoal import log

logger = logging.getLogger("shoal.control.anything")


def test_a_line_says_whose_it_is_and_at_which_step(capsys: pytest.CaptureFixture[str]) -> None:
    step = -1
    log.begin("a/cell0/stage0/shard1@n2", lambda: step)
    logger.info("waits for %s", "its seat")
    step = 57
    logger.warning("lost its way")
    logger.debug("not told")
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line.partition(" ")[2] for line in printed.err.splitlines()]
    assert lines == [
        "INFO [a/cell0/stage0/shard1@n2] waits for its seat",
        "WARNING [a/cell0/stage0/shard1@n2 step 57] lost its way",
    ]


def test_no_secret_and_nothing_that_acts_on_a_terminal_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    log.begin("a/controller")
    try:
        raise OSError("mysql://me:hunter2@db is away")
    except OSError:
        logger.exception("could not reach %s", "mysql://me:hunter2@db\x1b[2J")
    told = capsys.readouterr().err
    assert "OSError: mysql://" in told
    assert "Traceback" in told
    assert "hunter2" not in told
    assert "\x1b" not in told


def test_a_driver_is_quiet_and_the_environment_may_ask_for_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.begin("shoal", least="warning")
    logger.info("first")
    monkeypatch.setenv(log.LEVEL, "DEBUG")
    log.begin("shoal", least="warning")
    logger.debug("second")
    monkeypatch.setenv(log.LEVEL, "loud")
    log.begin("shoal", least="warning")
    logger.info("third")
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "DEBUG [shoal] second",
        "WARNING [shoal] SHOAL_LOG=loud is none of debug, info, warning, error: warning is taken",
    ]


def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise OSError(errno.ENOSPC, "No space left on device")

    log.begin("a/controller")
    monkeypatch.setattr(sys, "stderr", Full())
    logger.warning("a full disk")
    assert "a full disk" in tried[0]
