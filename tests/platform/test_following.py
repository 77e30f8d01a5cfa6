"""A driver that follows a run which it did not start, or whose controller it cannot reach."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from shoal import submit
from shoal.config import Job
from shoal.errors import UserError
from shoal.record.rundir import RunDir

FUTURE = object()
CONTROLLER = SimpleNamespace(wait=SimpleNamespace(remote=lambda: FUTURE))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose run is on record and has a controller."""
    job = Job.model_validate({"run_id": "one", "storage": tmp_path, "steps": 4, "workload": {"path": "a:B"}})
    RunDir.create(tmp_path, "one", job.model_dump(mode="json"), resume=False).close()
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: CONTROLLER)
    return job


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A driver takes signals for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def end(job: Job, **figures: Any) -> None:
    run = RunDir(job.storage / "one")
    run.append_event("run_ended", **figures)
    run.write_run(figures)
    run.close()


def test_a_run_without_an_end_on_record_may_be_running(job: Job) -> None:
    assert submit.unfinished(job)
    assert not submit.unfinished(job.model_copy(update={"run_id": "another"}))
    assert not submit.unfinished(job.model_copy(update={"run_id": None}))
    end(job, status="done", reason="")
    assert not submit.unfinished(job)


def test_the_same_job_finds_its_controller_and_another_is_refused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert submit.running(job) == (CONTROLLER, FUTURE)
    with pytest.raises(UserError, match=r"running now, with other settings of seed, workload\.path") as refused:
        submit.running(job.model_copy(update={"seed": 1, "workload": {"path": "a:C"}}))
    assert "shoal stop one" in refused.value.remedy

    def nobody(name: str, namespace: str) -> None:
        raise ValueError(name)

    monkeypatch.setattr(ray, "get_actor", nobody)
    assert submit.running(job) is None


def test_the_record_tells_the_end_if_the_controller_cannot(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    end(job, status="stopped", reason="by hand")
    monkeypatch.setattr(ray, "wait", lambda futures, timeout: ([], futures))
    seen: list[str] = []
    found = submit.follow(CONTROLLER, FUTURE, job.storage / "one", lambda kind, line: seen.append(line["kind"]))
    assert found == ("stopped", "by hand")
    assert seen == ["run_ended"]
