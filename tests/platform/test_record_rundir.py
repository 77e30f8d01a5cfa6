"""The writer's side of a run directory, and what its readers see of it while it is being written."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shoal.record import jsonl, layout, read
from shoal.record.finding import find_run
from shoal.record.jsonl import read_lines, repair
from shoal.record.rundir import RunDir, check_run_id
from shoal.record.tails import Tail
from shoal_core.errors import UserError

CONFIG: dict[str, Any] = {"steps": 4, "cells": 2, "mlflow": {"uri": "http://me:hunter2@host:5000"}}


def a_step(step: int, batch: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "loss": 2.0, "lm_loss": 1.8, "mtp_loss": 2.1, "grad_norm": 1.0, "lr": 1e-3, "tokens": 64,
        "samples": [step * batch, (step + 1) * batch], "cells": 2, "generation": 0, "seconds": 0.1, **more,
    }  # fmt: skip


def test_a_run_id_is_claimed_once(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "a", CONFIG, resume=False).close()
    assert (tmp_path / "a" / layout.CHECKPOINTS).is_dir()
    assert read.config(tmp_path / "a") == {**CONFIG, "mlflow": {"uri": "http://***@host:5000"}}
    assert (tmp_path / "a" / layout.CONFIG).stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match=r"'a' is in use(.|\n)*--resume"):
        RunDir.create(tmp_path, "a", CONFIG, resume=False)
    with pytest.raises(UserError, match="no run 'b' to resume"):
        RunDir.create(tmp_path, "b", CONFIG, resume=True)
    assert not (tmp_path / "b").exists()
    with pytest.raises(UserError, match="cannot name a run"):
        check_run_id(tmp_path, "../b", resume=False)


def test_resume_keeps_the_record_and_tells_changed_settings_without_secrets(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
    run.append_step(a_step(0))
    run.write_run({"status": "stopped"})
    run.write_status({"status": "stopped"})
    run.close()
    changed = {**CONFIG, "steps": 8, "mlflow": {"uri": "http://me:hunter3@host:5000"}}
    run = RunDir.create(tmp_path, "a", changed, resume=True)
    assert run.last_step == 0
    assert not (tmp_path / "a" / layout.RUN).exists()
    assert not (tmp_path / "a" / layout.STATUS).exists()
    assert read.config(run.path)["steps"] == 8
    (event,) = read.events(run.path)
    assert event["changes"] == {"steps": [4, 8]}
    assert "hunter" not in (run.path / layout.EVENTS).read_text()


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'{"step": 2, "loss": 1.0}', b"x" * 200_000])
def test_a_torn_last_line_is_no_line_and_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
    for step in range(2):
        run.append_step(a_step(step))
    run.close()
    file = run.path / layout.STEPS
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    assert [line["step"] for line in read.steps(run.path)] == [0, 1]
    again = RunDir(run.path)
    assert file.read_bytes() == whole
    again.append_step(a_step(2))
    assert [line["step"] for line in read.steps(run.path)] == [0, 1, 2]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"y" * 70_000)
    assert repair(file) == 70_000
    assert file.read_bytes() == b""
    assert repair(file) == 0


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"step": 0}\nnot json\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2 is not JSON"):
        list(read_lines(file))


def test_a_step_is_recorded_once_and_whole(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
    before = time.time()
    run.append_step(a_step(0, bias_max=0.25, tokens=64.0))
    (line,) = read.steps(run.path)
    assert '"tokens": 64,' in (run.path / layout.STEPS).read_text()
    assert line.keys() == {*layout.STEP_FIELDS, "bias_max"}
    assert before <= line["time"] <= time.time()
    with pytest.raises(ValueError, match="recorded already"):
        run.append_step(a_step(0))
    incomplete = a_step(1)
    del incomplete["tokens"]
    with pytest.raises(ValueError, match="without tokens"):
        run.append_step(incomplete)
    run.append_step(a_step(1, loss=float("nan"), grad_norm=float("inf")))
    text = (run.path / layout.STEPS).read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    few = {key: value for key, value in a_step(2).items() if key not in ("mtp_loss", "lr")}
    run.append_step(few)  # a workload without them
    assert (read.steps(run.path)[-1]["mtp_loss"], read.steps(run.path)[-1]["lr"]) == (None, None)
    assert read.steps(run.path)[1]["loss"] is None


def test_events_carry_every_field_of_the_contract(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
    returned = run.append_event("death", actor="a/cell0/stage0/shard1@node2", node="node2", pid=7, time=12.5)
    assert read.events(run.path) == [returned]
    assert returned == {
        "time": 12.5, "kind": "death", "actor": "a/cell0/stage0/shard1@node2", "node": "node2", "pid": 7,
        "cell": None, "coords": None, "how": None, "step": None,
    }  # fmt: skip


def test_steps_are_taken_back_from_both_files(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
    for step in range(5):
        run.append_samples({"step": step, "cell": 0, "worker": "w", "ids": list(range(step * 4, step * 4 + 4))})
        run.append_step(a_step(step))
    assert run.truncate_steps(3) == 2
    assert run.last_step == 2
    assert [line["step"] for line in read.steps(run.path)] == [0, 1, 2]
    assert [line["step"] for line in read.samples(run.path)] == [0, 1, 2]
    run.append_step(a_step(3))
    assert [line["step"] for line in read.steps(run.path)] == [0, 1, 2, 3]
    assert run.truncate_steps(9) == 0


def test_a_tail_sees_lines_once_and_follows_a_replaced_file(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
    tail = Tail(run.path / layout.STEPS)
    assert tail.read() == []
    for step in range(4):
        run.append_step(a_step(step, time=float(step)))
    assert [line["step"] for line in tail.read()] == [0, 1, 2, 3]
    with open(run.path / layout.STEPS, "ab") as other:
        other.write(b'{"step": 4, "ti')
        other.flush()
        assert tail.read() == []
        other.write(b'me": 4.0}\n')
    assert [line["step"] for line in tail.read()] == [4]
    run.truncate_steps(2)
    for step in range(2, 5):
        run.append_step(a_step(step, time=10.0 + step))
    assert [line["step"] for line in tail.read()] == [2, 3, 4]


def test_a_tail_asks_no_clock_for_what_is_new(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
    tail = Tail(run.path / layout.STEPS)
    for step in range(6):
        run.append_step(a_step(step, time=5000.0 + step))
    assert len(tail.read()) == 6
    run.truncate_steps(4)
    for step in range(4, 7):  # done again in every figure alike, by a clock that was set back
        run.append_step(a_step(step, time=(5000.0 if step < 6 else 100.0) + step))
    assert [line["step"] for line in tail.read()] == [4, 5, 6]
    run.truncate_steps(5)
    run.append_step(a_step(5, time=1.0))
    run.truncate_steps(5)
    run.truncate_steps(2)
    run.append_step(a_step(2, time=1.0))
    assert [line["step"] for line in tail.read()] == [2]
    run.truncate_steps(0)
    run.append_step(a_step(0, time=5000.0))
    assert [line["step"] for line in tail.read()] == [0]


def test_a_follower_goes_on_though_the_clock_is_set_back(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
    run.append_event("run_started", run_id="a", steps=3, cells=2, workers_per_cell=2, time=100.0)
    run.append_step(a_step(0, time=5000.0))
    seen = []
    for kind, line in read.follow(run.path, since=4000.0, poll=0.01):
        seen.append((kind, line["time"]))
        if len(seen) == 1:
            run.append_step(a_step(1, time=1000.0))
            run.append_event("run_ended", status="done", time=1001.0)
    assert seen == [("step", 5000.0), ("step", 1000.0), ("event", 1001.0)]


def test_follow_gives_lines_as_they_come_until_the_run_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def write() -> None:
        run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
        run.append_event("run_started", run_id="a", steps=3, cells=2, workers_per_cell=2)
        for step in range(3):
            run.append_step(a_step(step))
            time.sleep(0.02)
        run.append_event("run_ended", status="done")

    writer = threading.Thread(target=write)
    writer.start()
    seen = list(read.follow(path, poll=0.01))
    writer.join()
    assert [kind for kind, _ in seen] == ["event", "step", "step", "step", "event"]
    assert [line["step"] for kind, line in seen if kind == "step"] == [0, 1, 2]
    assert list(read.follow(path, since=time.time(), stop=lambda: True)) == []


def test_find_run_by_id_by_path_or_the_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs in"):
        find_run(None, tmp_path)
    for index, name in enumerate(["first", "second"]):
        run = RunDir.create(tmp_path, name, CONFIG, resume=False)
        os.utime(run.path / layout.EVENTS, (index, index))
    assert find_run("first", tmp_path) == tmp_path / "first"
    assert find_run(tmp_path / "first", "elsewhere") == tmp_path / "first"
    assert find_run(None, tmp_path) == tmp_path / "second"
    with pytest.raises(UserError, match=r"no run 'third'(.|\n)*second, first"):
        find_run("third", tmp_path)


class Growing(io.RawIOBase):
    """A file whose reader comes to its end more than once: each part was appended after the one before was read."""

    def __init__(self, *parts: bytes) -> None:
        self._reads = [read for part in parts for read in (part, b"")]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._reads.pop(0) if self._reads else b""
        buffer[: len(part)] = part
        return len(part)


def test_the_rest_of_a_line_that_came_meanwhile_is_no_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    growing = Growing(b'{"step": 0}\n{"st', b'ep": 1}\n{"step": 2}\n')
    monkeypatch.setattr(jsonl, "open", lambda path, mode: io.BufferedReader(growing), raising=False)
    assert list(read_lines(tmp_path / "steps.jsonl")) == [{"step": 0}]


def test_a_writer_killed_at_any_moment_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "import sys; from shoal.record.rundir import RunDir\n"
        "run = RunDir(sys.argv[1]); n = run.last_step\n"
        "while True:\n"
        "    n += 1\n"
        "    run.append_step(dict(step=n, loss=1.0, lm_loss=1.0, mtp_loss=1.0, grad_norm=1.0, lr=1.0, tokens=1,"
        " samples=[n, n + 1], cells=1, generation=0, seconds=0.1, more='x' * 5000))\n"
        "    run.write_status({'step': n, 'workers': ['w' * 5000]})\n"
    )
    run = RunDir.create(tmp_path, "a", CONFIG, resume=False)
    run.close()
    last = -1
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code, str(run.path)])
        deadline = time.monotonic() + 300
        try:
            while len(read.steps(run.path)) < last + 50:
                assert time.monotonic() < deadline
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        numbers = [line["step"] for line in read.steps(run.path)]
        assert numbers == list(range(len(numbers)))
        last = numbers[-1]
        RunDir(run.path).close()
        assert not list(run.path.glob("*.tmp"))
        assert not list(run.path.glob(".*.tmp"))
        assert json.loads((run.path / layout.STATUS).read_text())["step"] in (last - 1, last)


def test_a_storage_that_may_not_be_mounted_is_told_on_resume(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    for storage, said in (
        ("mount", "mount is empty"),
        ("mount/runs", "mount is empty"),
        ("gone/runs", "gone is not there"),
    ):
        with pytest.raises(
            UserError, match=rf"no run 'a' to resume in .*{said}: is its disk mounted\?(.|\n)*mount its disk"
        ):
            check_run_id(tmp_path / storage, "a", resume=True)
    RunDir.create(tmp_path / "mount", "b", {}, resume=False).close()
    with pytest.raises(UserError, match=r"no run 'a' to resume in \S*mount\n"):
        check_run_id(tmp_path / "mount", "a", resume=True)
