"""A user's callbacks: what they are told of a run, and that one which raises or hangs stops nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.train import Checkpoint, RunConfig, ScalingConfig, UserCallback
from ray.train.v2._internal.execution.callback import ReportCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from shoal.on_ray import callbacks
from shoal.on_ray.callbacks import Callbacks, Configs, packed
from shoal.record.rundir import RunDir
from shoal.record.sentences import sentence
from shoal.train import ShoalTrainer
from shoal_core.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray's own
TOLD: list[tuple[str, Any]] = []
"""What `Notes` was told, in this process."""
GO = threading.Event()
CREW = ["a/x@n0", "a/y@n1"]


class Notes(UserCallback):
    """Notes what it is told."""

    def after_report(
        self, run_context: TrainRunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        (figures,) = metrics
        TOLD.append(("report", (figures["step"], checkpoint and checkpoint.path)))
        TOLD.append(("context", run_context))
        assert "norm_sq" not in figures

    def after_exception(self, run_context: TrainRunContext, worker_exceptions: dict[int, Exception]) -> None:
        TOLD.append(("exception", {rank: str(error) for rank, error in worker_exceptions.items()}))


class Raises(UserCallback):
    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        raise RuntimeError("password=hunter2 is refused")


class Leaves(UserCallback):
    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        raise SystemExit(1)


class Hangs(UserCallback):
    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        GO.wait(60)


class Nowhere(UserCallback):
    """The controller cannot make it."""

    def __reduce__(self) -> Any:
        return (__import__, ("no_such_module",))


def until(found: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def given(*some: UserCallback) -> bytes:
    callbacks: Any = list(some)  # Ray's types know Tune's alone
    config = RunConfig(name="a", storage_path="/tmp/runs", callbacks=callbacks)
    return packed(Configs(config, ScalingConfig(num_workers=2), {"lr": 0.1}))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    TOLD.clear()
    GO.clear()
    return RunDir.create(tmp_path, "a", {}, resume=False)


class Journal:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def __call__(self, kind: str, **fields: Any) -> None:
        self.lines.append({"kind": kind, **fields})

    def of(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["callback"] == name]


def told_of(run: RunDir, *some: UserCallback, session: str = "s", again: bool = False) -> tuple[Callbacks, Journal]:
    """These callbacks, called from now on with what happens to the run; and what is put on record of them."""
    journal = Journal()
    one = Callbacks(given(*some), run.path, session, again=again, journal=journal)
    one.start()
    return one, journal


def begin(run: RunDir) -> None:
    run.append_event("run_started", run_id="a", steps=9, cells=2, workers_per_cell=1)
    cells, attempts = {"0": CREW[:1], "1": CREW[1:]}, {"0": 0, "1": 0}
    run.append_event("generation", generation=0, step=0, live=2, cells=cells, attempts=attempts, since=None)


def step(run: RunDir, number: int) -> None:
    figures = {"loss": 1.0, "lm_loss": None, "mtp_loss": None, "grad_norm": 1.0, "lr": 0.1, "norm_sq": 1.0}
    line = {"step": number, "time": time.time(), "samples": [number, number + 1], "tokens": 1, "cells": 2}
    run.append_step(line | {"generation": 0, "seconds": 0.1, "stats": [1.0], **figures})


def kinds(kind: str) -> list[Any]:
    return [what for found, what in TOLD if found == kind]


def test_they_hear_of_steps_checkpoints_deaths_and_errors_as_rays_controller_tells_them(run: RunDir) -> None:
    one, journal = told_of(run, Notes(), session="s7")
    begin(run)
    step(run, 0)
    step(run, 1)
    run.append_event("death", actor=CREW[1], node="n1", pid=1, cell=1, coords=None, how="connection closed", step=1)
    run.append_event("death", actor="a/spare1@n1", node="n1", pid=2, cell=None, coords=None, how="it too", step=1)
    run.append_event("error", actor=CREW[0], step=1, samples=[1, 2], trace="Traceback ...\nValueError: so")
    run.append_event("checkpoint", step=1, path=str(run.path / "checkpoints/step-00000001"), seconds=0.1, bytes=1)
    until(lambda: len(kinds("report")) == 3, "not all was told")
    one.close(60)
    where = str(run.path / "checkpoints/step-00000001")
    assert sorted(kinds("report"), key=str) == sorted([(0, None), (1, None), (0, where)], key=str)
    died, raised = kinds("exception")
    assert list(died) == [1]
    assert "connection closed" in died[1]
    assert raised == {0: "Traceback ...\nValueError: so"}
    context = kinds("context")[0]
    assert (context.run_id, context.get_run_config().name) == ("s7", "a")
    assert (context.train_loop_config, context.scaling_config.num_workers) == ({"lr": 0.1}, 2)
    assert journal.lines == []


def test_one_that_raises_or_hangs_is_told_and_the_others_are_called(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "HANGS", 0.05)
    one, journal = told_of(run, Raises(), Leaves(), Notes(), Hangs())
    begin(run)
    for number in range(4):
        step(run, number)
    until(lambda: journal.of("Hangs.after_report"), "that it hangs was not told")
    assert "has not returned" in journal.lines[-1]["problem"]
    one.close(0.01)  # returns
    GO.set()
    until(lambda: len(kinds("report")) == 4, "who stands beside one that raises was not told all")
    until(lambda: len(journal.of("Raises.after_report")) == 3, "not told as often as it should be")
    assert [line["times"] for line in journal.of("Raises.after_report")] == [1, 2, 4]
    assert "it raised SystemExit" in journal.of("Leaves.after_report")[0]["problem"]
    told = sentence(journal.of("Raises.after_report")[-1])
    assert told is not None
    assert told.startswith("A callback failed, Raises.after_report: it raised RuntimeError")
    assert "hunter2" not in told


def test_what_the_controller_cannot_make_is_told_once(run: RunDir) -> None:
    one, journal = told_of(run, Nowhere())
    begin(run)
    step(run, 0)
    step(run, 1)
    until(lambda: journal.lines, "it was not told")
    one.close(60)
    assert [(line["callback"], line["times"]) for line in journal.lines] == [("callbacks", 1)]
    assert "no_such_module" in journal.lines[0]["problem"]


def test_a_controller_that_comes_back_goes_on_where_the_one_before_it_was(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "NOTED", 0.0)
    first, _ = told_of(run, Notes())
    begin(run)
    step(run, 0)
    until(lambda: (run.path / callbacks.POSITION).exists() and kinds("report"), "it was not noted")
    first.close(60)
    TOLD.clear()
    step(run, 1)
    run.append_event("death", actor=CREW[1], node="n1", pid=1, cell=1, coords=None, how="so", step=1)
    again, _ = told_of(run, Notes(), again=True)
    run.append_event("checkpoint", step=1, path=str(run.path / "checkpoints/step-00000001"), seconds=0.1, bytes=1)
    until(lambda: len(kinds("report")) == 2, "what came meanwhile was not told")
    again.close(60)
    assert [number for number, _ in kinds("report")] == [1, 0]
    assert list(kinds("exception")[0]) == [1]  # by the journal before it, of that rank


def test_what_cannot_travel_is_refused_before_anything_starts(tmp_path: Path) -> None:
    def trainer(callback: Any) -> ShoalTrainer:
        config = RunConfig(name="a", storage_path=str(tmp_path), callbacks=[callback])
        own = {"steps": 5}
        return ShoalTrainer("shoal_workloads.synthetic:Synthetic", shoal_config=own, run_config=config)

    notes: Any = Notes()
    trainer(notes)
    notes.lock = threading.Lock()
    with pytest.raises(UserError, match=r"RunConfig\.callbacks: cannot be sent to the controller \(TypeError"):
        trainer(notes)
    notes.lock = b"x" * callbacks.LARGEST
    with pytest.raises(UserError, match="65,536 at most"):
        trainer(notes)
    with pytest.raises(UserError, match="belongs to Ray Train's own controller"):
        trainer(ReportCallback())
    assert packed(Configs(RunConfig(), ScalingConfig(), {})) == b""
