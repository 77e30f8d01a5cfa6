"""Whose a run is: one session at a time, seen to live by watching it, and who lost a run writes no more."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.record import layout, lease
from shoal.record.lease import Held, Holder, Lease, LeaseLost, claim, may_take, read
from shoal.record.rundir import RunDir
from shoal_core.errors import UserError
from tests.support.lab import lab

OTHER = Holder("other", 3, "far", 7)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.02)
    monkeypatch.setattr(lease, "WATCH", 0.5)
    monkeypatch.setattr(lease, "LOOK", 0.0)


@contextmanager
def living(folder: Path) -> Iterator[None]:
    """Another session, on a machine whose clock is wrong, that touches the file again and again."""
    over = threading.Event()

    def beat() -> None:
        times = 0
        while not over.wait(0.02):
            times += 1
            os.utime(folder / layout.LEASE, (times, times))

    lease.put(folder, "other", None)
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize(
    ("held", "owner", "alive", "allowed"),
    [
        (None, "me", None, True),
        (OTHER, "other", None, True),
        (OTHER, "other", True, True),
        (OTHER, "me", None, None),
        (OTHER, "me", True, False),
        (OTHER, "me", False, True),
    ],
)
def test_who_may_take_a_run(held: Holder | None, owner: str, alive: bool | None, allowed: bool | None) -> None:
    assert may_take(held, owner, alive) is allowed


def test_a_living_session_is_not_disturbed_and_is_named(tmp_path: Path) -> None:
    with living(tmp_path):
        before, _ = read(tmp_path)
        with pytest.raises(Held, match=f"is running now on {os.uname().nodename}, process {os.getpid()}"):
            claim(tmp_path, "me")
        assert read(tmp_path)[0] == before
    assert claim(tmp_path, "me").epoch == 1, "it is silent now"


def test_one_that_ended_or_died_is_taken(tmp_path: Path) -> None:
    first = Lease(tmp_path, "a")
    first.release()
    assert read(tmp_path) == (None, 0)
    assert claim(tmp_path, "b").epoch == 0
    os.utime(tmp_path / layout.LEASE, (2**33, 2**33))  # touched in the future, by its clock
    assert (claim(tmp_path, "c").owner, read(tmp_path)[0].epoch) == ("c", 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"owner": 1}', "\x00" * 100])
def test_a_file_that_makes_no_sense_is_watched_too(tmp_path: Path, text: str) -> None:
    (tmp_path / layout.LEASE).write_text(text)
    with pytest.raises(Held, match="unknown host"):
        Lease(tmp_path, "me")
    assert claim(tmp_path, "me").owner == "me"


def test_a_controller_that_is_started_again_takes_the_run_of_its_session_and_of_no_other(tmp_path: Path) -> None:
    first = Lease(tmp_path, "a")
    first.guard()
    second = Lease(tmp_path, "a")
    second.guard()
    with pytest.raises(LeaseLost, match="taken by another controller") as lost:
        first.guard()
    assert lost.value.succeeded
    with pytest.raises(Held, match="another session's now"):
        Lease(tmp_path, "b")
    second.guard()
    first.release()
    assert read(tmp_path)[0] is not None, "it is not the first one's to remove"


def test_of_two_that_claim_at_once_one_has_it(tmp_path: Path) -> None:
    lease.put(tmp_path, "dead", None)
    refused: list[str] = []

    def take(owner: str) -> None:
        try:
            claim(tmp_path, owner)
        except Held:
            refused.append(owner)

    threads = [threading.Thread(target=take, args=(owner,)) for owner in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held, _ = read(tmp_path)
    assert held is not None
    loser = {"a": "b", "b": "a"}[held.owner]
    assert held.owner not in refused
    with pytest.raises(Held):  # a loser that was not refused at once is now
        Lease(tmp_path, loser)
    Lease(tmp_path, held.owner).guard()


def test_who_lost_a_run_changes_no_file_of_it(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "a", {}, resume=False).close()
    folder = tmp_path / "a"
    mine = Lease(folder, "a")
    run = RunDir(folder, mine.guard)
    step = dict.fromkeys(layout.STEP_FIELDS, 0)
    run.append_step(step)
    lease.put(folder, "b", read(folder)[0])
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    writes: list[Callable[[], Any]] = [
        lambda: run.append_step(step | {"step": 1}),
        lambda: run.append_event("death"),
        lambda: run.append_samples({}),
        lambda: run.truncate_steps(0),
        lambda: run.replace_plan([]),
        lambda: run.write_status({}),
        lambda: run.write_run({}),
    ]
    for write in writes:
        with pytest.raises(LeaseLost, match="taken by another session"):
            write()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_full_disk_takes_no_run_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Lease(tmp_path, "a")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lease, "replace_file", full)
    again = Lease(tmp_path, "a")
    again.guard()
    with pytest.raises(Held):
        Lease(tmp_path, "b")
    (tmp_path / layout.LEASE).unlink()
    again.guard()
    lease.put(tmp_path, "b", None)
    with pytest.raises(LeaseLost):
        again.guard()
    (tmp_path / layout.LEASE).unlink()
    lease.put(tmp_path, "dead", None)
    with pytest.raises(UserError, match="No space left"):
        claim(tmp_path, "a")


def test_a_run_that_another_session_takes_is_let_go(tmp_path: Path) -> None:
    with lab(tmp_path, {"n0": 1, "n1": 1}, cells=2, workers_per_cell=1, steps=10**6) as one:
        one.full(5)
        lease.put(one.path, "another", read(one.path)[0])
        one.controller.join(120)
        assert not one.controller.is_alive(), one.story()
        for process in one.processes.values():
            process.join(120)
        assert one.living() == []
        assert read(one.path)[0].owner == "another"  # type: ignore[union-attr]
        assert not (one.path / layout.RUN).exists()
        assert not one.events("run_ended")
        assert "was taken by another session" in (tmp_path / "controller.log").read_text()


def test_workers_without_a_controller_save_nothing_into_a_run_that_another_session_took(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"cells": 2, "workers_per_cell": 1, "steps": 10**6, "checkpoint": {"every": 50}}
    settings |= {"workload": {"seconds": 0.005}}
    with lab(tmp_path, {"n0": 1, "n1": 1}, **settings) as one:
        one.full(5)
        one.controller.kill()
        one.controller.join()
        lease.put(one.path, "another", read(one.path)[0])
        there = {path.name for path in (one.path / layout.CHECKPOINTS).iterdir()}
        (saver,) = one.members(0)
        one.processes[saver].join(240)
        assert saver not in one.living()
        assert {path.name for path in (one.path / layout.CHECKPOINTS).iterdir()} <= there | {"step-00000050"}
        assert "was taken by another session" in (tmp_path / "workers.log").read_text()
