"""The pen on disks that fill up, hang and come back."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.record import layout, pen, read
from shoal.record.jsonl import Appender, read_json
from shoal.record.pen import Pen
from shoal.record.rundir import RunDir

FIGURES = {"loss": 2.0, "tokens": 64, "cells": 1, "generation": 0, "seconds": 0.1}


def a_step(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "samples": [step, step + 1], **FIGURES, **more}


class Disk:
    """Stands between every write of the record and the disk: `full`, or `hung` until `wake`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.wake = threading.Event()
        self.wake.set()
        for owner, name in ((Appender, "write"), (RunDir, "write_status"), (RunDir, "replace_plan")):
            monkeypatch.setattr(owner, name, self.between(getattr(owner, name)))
        monkeypatch.setattr(pen, "RETRY", 0.01)
        monkeypatch.setattr(pen, "PAUSE", 0.01)

    def between(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any) -> Any:
            self.wake.wait()
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        return write


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def a_pen(folder: Path, **bounds: int) -> Pen:
    return Pen(RunDir.create(folder, "a", {}, resume=False), **bounds)


def until(true: Callable[[], Any]) -> None:
    for _ in range(3000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came true")


def test_lines_are_written_in_the_order_told(tmp_path: Path) -> None:
    one = a_pen(tmp_path)
    for step in range(50):
        one.step(a_step(step), [{"step": step, "cell": 0, "worker": "w", "ids": [step]}])
    assert one.event("drain", generation=3)["reason"] is None
    one.generation(0, 0, {"0": ("w0",)}, {"0": 0})
    one.generation(1, 5, {"0": ("w1",)}, {"0": 1})
    one.status({"step": 49})
    assert one.close(30.0) == 0
    path = tmp_path / "a"
    assert [line["step"] for line in read.steps(path)] == list(range(50))
    assert [line["step"] for line in read.samples(path)] == list(range(50))
    told = [(line["kind"], line["generation"]) for line in read.events(path)]
    assert told == [("drain", 3), ("generation", 0), ("generation", 1)]
    assert (path / layout.PLAN).exists()
    assert (path / layout.STATUS).exists()


def test_the_workers_of_the_picture_are_told_in_the_pens_own_thread(tmp_path: Path) -> None:
    threads: set[str] = set()

    def workers() -> Iterator[dict[str, Any]]:
        threads.add(threading.current_thread().name)
        yield from ({"actor": f"w{number}", "heartbeat_age": float("nan")} for number in range(3))

    one = a_pen(tmp_path)
    one.status({"step": 7}, workers)
    assert one.close(30.0) == 0
    assert threads == {"record"}
    status = read_json(tmp_path / "a" / layout.STATUS)
    assert status is not None
    assert (status["step"], [tuple(worker.values()) for worker in status["workers"]]) == (
        7,
        [("w0", None), ("w1", None), ("w2", None)],
    )


def test_what_a_full_disk_refused_is_written_once_there_is_room(tmp_path: Path, disk: Disk) -> None:
    one = a_pen(tmp_path)
    one.step(a_step(0))
    until(lambda: one.settle(0.1))
    assert one.stall() is None
    disk.full = True
    for step in range(1, 20):
        one.step(a_step(step))
    one.truncate(15)
    one.step(a_step(15, loss=9.0))
    assert one.settle(30.0) is False  # at once: it is stalled
    stall = one.stall()
    assert stall is not None
    assert (stall.over, stall.lines) == (False, 21)
    assert "No space left" in stall.reason
    assert [line["step"] for line in read.steps(tmp_path / "a")] == [0]
    disk.full = False
    until(lambda: not one._waiting)
    over = one.stall()
    assert over is not None
    assert (over.over, over.lines, over.since) == (True, 21, stall.since)
    assert one.stall() is None
    steps = read.steps(tmp_path / "a")
    assert [line["step"] for line in steps] == list(range(16))
    assert steps[-1]["loss"] == 9.0
    assert one.close(30.0) == 0


def test_a_status_that_cannot_be_written_is_told_until_one_can_be(tmp_path: Path, disk: Disk) -> None:
    one = a_pen(tmp_path)
    disk.full = True
    one.status({"step": 1})
    until(lambda: one.stall() is not None)
    assert [one.stall().over for _ in range(3)] == [False] * 3  # type: ignore[union-attr]
    disk.full = False
    until(lambda: one.stall() is None)
    assert (tmp_path / "a" / layout.STATUS).exists()


def test_a_disk_that_hangs_is_noticed_and_holds_nobody_up(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pen, "SLOW", 0.02)
    one = a_pen(tmp_path)
    disk.wake.clear()
    one.event("drain")
    until(lambda: one.stall() is not None)
    one.event("drain")
    assert one.close(0.05) == 2
    disk.wake.set()


def test_more_lines_or_bytes_than_may_wait_are_told(tmp_path: Path, disk: Disk) -> None:
    one = a_pen(tmp_path, lines=3)
    disk.full = True
    for _ in range(3):
        one.event("drain")
    assert not one.full
    one.event("drain")
    assert one.full
    other = Pen(RunDir(tmp_path / "a"), size=1000)
    other.event("drain", reason="x" * 900)
    assert not other.full
    other.event("drain")
    assert other.full


def test_what_is_no_line_is_refused_at_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    one = a_pen(tmp_path)
    one.step(a_step(0))
    with pytest.raises(ValueError, match="recorded already"):
        one.step(a_step(0))
    without = a_step(1)
    del without["tokens"]
    with pytest.raises(ValueError, match="without tokens"):
        one.step(without)
    with pytest.raises(TypeError):
        one.event("note", thing=object())
    one.step(a_step(1))
    assert one.close(30.0) == 0
    assert [line["step"] for line in read.steps(tmp_path / "a")] == [0, 1]
    assert read.events(tmp_path / "a") == []
