"""What Ray shows of a run fails or hangs, and the run goes on; the view is made again once it can be."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.config import Job
from shoal.on_ray import train_state, views
from shoal.on_ray.train_state import TrainState
from shoal.on_ray.views import Views
from shoal.record.raystate import RunState
from shoal.record.rundir import RunDir

STARTED: dict[str, Any] = {"run_id": "a", "steps": 9, "cells": 1, "workers_per_cell": 1}
GENERATION: dict[str, Any] = {"generation": 0, "step": 0, "live": 1, "cells": {"0": ["a/x@n"]}, "attempts": {"0": 0}}


class Shown:
    """A view that notes what it is shown, and first fails `fails` times."""

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.said, self.calls = fails, list[str](), 0

    def show(self, state: RunState) -> None:
        self.calls += 1
        if self.calls <= self.fails:
            raise RuntimeError("the head is away")
        self.said.append(state.status)

    def check(self) -> None:
        pass


def until(found: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(views, "PAUSE", 0.01)
    monkeypatch.setattr(views, "CHECK", 0.05)
    return RunDir.create(tmp_path, "a", {}, resume=False)


def test_views_follow_the_journal_of_this_session(run: RunDir) -> None:
    for kind, fields in (("run_started", STARTED), ("run_ended", {"status": "failed", "reason": "long ago"})):
        run.append_event(kind, **fields)
    view = Shown()
    shown = Views(run.path, {"one": lambda: view}, since=time.time())
    shown.start()
    run.append_event("run_started", **STARTED)
    run.append_event("generation", **GENERATION)
    until(lambda: view.said[-1:] == ["RUNNING"], "it is not shown")
    assert "ERRORED" not in view.said
    run.append_event("run_ended", status="done", reason="every step is committed")
    shown.close(60)
    assert view.said[-1] == "FINISHED"
    again = Shown()
    Views(run.path, {"one": lambda: again}, since=0.0)._look(last=True)  # a controller that comes back
    assert again.said == ["FINISHED"]


def test_one_that_fails_or_hangs_is_told_once_and_leaves_the_others_alone(
    run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    failing, after, hung, cut = Shown(fails=3), Shown(), threading.Event(), threading.Event()

    class Hanging(Shown):
        def show(self, state: RunState) -> None:
            hung.set()
            cut.wait(60)

    def unmade() -> Shown:
        raise ImportError("Ray has no such module")

    with caplog.at_level(logging.WARNING, logger="shoal"):
        shown = Views(run.path, {"failing": lambda: failing, "unmade": unmade, "after": lambda: after}, since=0.0)
        shown.start()
        run.append_event("run_started", **STARTED)
        until(lambda: failing.said and after.said, "one that failed was not tried again")
        shown.close(60)
        told = [record.getMessage() for record in caplog.records]
        assert sorted(word for line in told for word in ("failing", "unmade") if f"({word}:" in line) == [
            "failing", "unmade",
        ]  # fmt: skip
        hanging = Views(run.path, {"hanging": Hanging}, since=0.0)
        hanging.start()
        assert hung.wait(60)
        hanging.close(0.01)  # returns
        assert "not up to date" in caplog.messages[-1]
    cut.set()


def test_a_line_that_cannot_be_read_is_left_out(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    view = Shown()
    run.append_event("run_started", **STARTED)
    run.append_event("decision", rung="fly", cells=[0])
    run.append_event("generation", **GENERATION)
    with caplog.at_level(logging.WARNING, logger="shoal"):
        Views(run.path, {"one": lambda: view}, since=0.0)._look(last=True)
    assert view.said == ["RUNNING"]
    assert "a line of the journal, decision" in caplog.text


def test_the_state_is_told_once_and_all_again_to_an_actor_that_was_started_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[tuple[str, Any]] = []
    life = {"NumRestarts": 0}

    class Remote:
        def __init__(self, kind: str) -> None:
            self.kind = kind

        def remote(self, told: Any) -> Any:
            said.append((self.kind, told))
            return SimpleNamespace(future=lambda: SimpleNamespace(result=lambda timeout: None))

    actor = SimpleNamespace(
        _actor_id=SimpleNamespace(hex=lambda: "1"),
        create_or_update_train_run=Remote("run"),
        create_or_update_train_run_attempt=Remote("attempt"),
    )
    monkeypatch.setattr("ray.train.v2._internal.state.state_actor.get_or_create_state_actor", lambda: actor)
    monkeypatch.setattr(train_state, "actors", lambda *one, **other: life)
    job = Job.model_validate({"run_id": "a", "steps": 9, "workload": {"path": "m:W"}})
    one = TrainState(job, "s", SimpleNamespace(job="01000000", actor="c", log=None))  # type: ignore[arg-type]
    state = RunState()
    for kind, fields in (("run_started", STARTED), ("generation", GENERATION)):
        state.take({"kind": kind, "time": 1.0, **fields})
    one.show(state)
    one.show(state)
    one.check()
    assert [kind for kind, _ in said] == ["attempt", "run"]
    life["NumRestarts"] = 1
    one.check()
    one.show(state)
    assert [kind for kind, _ in said[2:]] == ["attempt", "run"]
    state.take({"kind": "drain", "time": 2.0, "generation": 0, "reason": "so"})
    one.show(state)
    assert [told.status.value for _, told in said[4:]] == ["FINISHED", "RESTARTING"]
