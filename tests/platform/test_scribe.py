"""Where a session's record begins, and what is said of steps that are missing; a run whose controller cannot live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.config import Job
from shoal.control.finish import bury
from shoal.control.scribe import Scribe
from shoal.protocol.said import Committed
from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.rundir import RunDir
from shoal_core.loading import make_workload

WORKLOAD = {"path": "shoal_workloads.synthetic:Synthetic", "global_batch": 4}


def a_commit(step: int, **metrics: float) -> Committed:
    """What a worker says of a committed step."""
    figures = {"loss": 1.0, "lm_loss": 1.0, "mtp_loss": 0.0, "grad_norm": 1.0, "lr": 0.1, "tokens": 4.0}
    who: dict[str, Any] = {"takers": (0, 0, 1, 1), "crew": ("a", "b"), "cell_of": (0, 1)}
    return Committed("a", 0, step + 1, 0.1, 2, figures | metrics, norm_sq=1.0, **who)


def a_scribe(folder: Path, recorded: int) -> Scribe:
    job = Job.model_validate({"run_id": "a", "steps": 90, "workload": WORKLOAD})
    RunDir.create(folder, "a", job.model_dump(mode="json"), resume=False).close()
    one = Scribe(job, folder / "a", make_workload(job.workload))
    for step in range(recorded):
        one.step(a_commit(step), 0)
    assert one.pen.close(60.0) == 0
    return Scribe(job, folder / "a", make_workload(job.workload))


@pytest.mark.parametrize(("recorded", "start"), [(0, 0), (57, 0), (57, 1), (57, 20), (57, 57)])
def test_a_session_begins_where_its_state_does(tmp_path: Path, recorded: int, start: int) -> None:
    """Nothing saved yet, the first step, a boundary, all that is on record."""
    one = a_scribe(tmp_path, recorded)
    one.started(start, {})
    one.step(a_commit(start, loss=7.0), 1)
    assert one.ended("stopped", "enough", start + 1) == ""
    path = tmp_path / "a"
    assert [line["step"] for line in read.steps(path)] == list(range(start + 1))
    assert [line["loss"] for line in read.steps(path)] == [1.0] * start + [7.0]
    taken = [(line["step"], line["worker"], line["ids"]) for line in read.samples(path)]
    assert taken[-2:] == [(start, "a", [4 * start, 4 * start + 1]), (start, "b", [4 * start + 2, 4 * start + 3])]
    assert len(taken) == 2 * (start + 1)
    run = read_json(path / layout.RUN)
    assert run is not None
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    assert [event["kind"] for event in read.events(path)] == ["run_started", "run_ended"]


def test_a_record_that_ends_before_the_state_begins_says_what_is_missing_once(tmp_path: Path) -> None:
    one = a_scribe(tmp_path, 10)
    one.started(15, {})
    for step in range(15, 18):
        one.step(a_commit(step), 1)
    one.ended("stopped", "enough", 18)
    path = tmp_path / "a"
    assert [event["steps"] for event in read.events(path) if event["kind"] == "record_gap"] == [[10, 15]]
    assert [line["step"] for line in read.steps(path)] == [*range(10), *range(15, 18)]


def test_figures_that_make_no_record_leave_none(tmp_path: Path) -> None:
    one = a_scribe(tmp_path, 0)
    one.started(0, {})
    with pytest.raises(ValueError, match="NaN"):
        one.step(a_commit(0, tokens=float("nan")), 0)
    one.step(a_commit(0), 0)
    one.ended("stopped", "enough", 1)
    assert len(list(read.samples(tmp_path / "a"))) == 2


def test_a_run_whose_controller_cannot_live_ends_on_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    RunDir.create(tmp_path, "a", {}, resume=False).close()
    bury(tmp_path / "a", "a/controller", ("failed", "the controller failed: ValueError: bad"), ValueError("bad"))
    error, ended = read.events(tmp_path / "a")
    assert (error["kind"], error["actor"]) == ("error", "a/controller")
    assert "ValueError: bad" in error["trace"]
    assert (ended["kind"], ended["status"], ended["by_controller"]) == ("run_ended", "failed", True)
    run = read_json(tmp_path / "a" / layout.RUN)
    assert run is not None
    assert (run["status"], run["reason"]) == ("failed", "the controller failed: ValueError: bad")
    bury(tmp_path / "nowhere", "b/controller", ("failed", "bad"), ValueError("bad"))  # is told, and raises nothing
    assert "could not be closed" in caplog.text


def test_people_are_told_of_such_an_end_once_it_is_on_record(tmp_path: Path) -> None:
    """Their hook looks at the record, as they would."""
    told = tmp_path / "told"
    look = "echo told >> $1.times; cp $0/run.json $1.run && cp $0/events.jsonl $1.events"
    notify = {"command": ["sh", "-c", look, str(tmp_path / "a"), str(told)], "timeout_s": 60}
    job = Job.model_validate({"run_id": "a", "steps": 90, "workload": WORKLOAD, "notify": notify})
    RunDir.create(tmp_path, "a", {}, resume=False).close()
    bury(tmp_path / "a", "a/controller", ("failed", "it could not live"), ValueError("bad"), job=job)
    seen = read_json(told.with_suffix(".run"))
    assert seen is not None
    assert (seen["status"], seen["reason"]) == ("failed", "it could not live")
    assert '"run_ended"' in told.with_suffix(".events").read_text()
    bury(tmp_path / "nowhere", "a/controller", ("failed", "no record at all"), ValueError("bad"), job=job)
    assert told.with_suffix(".times").read_text() == "told\n" * 2


def test_what_a_workload_calls_its_figures_takes_nothing_from_the_record(tmp_path: Path) -> None:
    one = a_scribe(tmp_path, 0)
    one.started(0, {})
    one.step(a_commit(0, samples=7.0, cells=5.0, generation=3.0, right=0.5), 0)
    one.ended("stopped", "enough", 1)
    (line,) = read.steps(tmp_path / "a")
    assert (line["samples"], line["cells"], line["generation"], line["right"]) == ([0, 4], 2, 0, 0.5)
