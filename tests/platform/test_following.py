"""A driver that follows a run which it did not start, or whose controller it cannot reach."""

from __future__ import annotations

import io
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from shoal import driver
from shoal.config import Job
from shoal.record.rundir import RunDir
from shoal.train.launch import done, on_record
from shoal.train.watch import Printer, threads_tell
from shoal_core.errors import UserError


class Silent:
    """A run whose cluster is gone: nothing is written, nobody ever answers."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, bool]] = []

    def stop(self, reason: str, *, save: bool) -> None:
        self.orders.append((reason, save))

    def over(self) -> bool:
        return False

    def outcome(self) -> tuple[str, str]:
        raise AssertionError("it is not over")


class Dead(Silent):
    """A run whose controller died."""

    def over(self) -> bool:
        return True

    def outcome(self) -> tuple[str, str]:
        raise driver.ControllerDied("killed")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job whose run is on record."""
    job = Job.model_validate({"run_id": "one", "storage": tmp_path, "steps": 4, "workload": {"path": "a:B"}})
    RunDir.create(tmp_path, "one", job.model_dump(mode="json"), resume=False).close()
    return job


def followed(run: driver.Run, job: Job, show: driver.Show = lambda kind, line: None) -> tuple[str, str, int | None]:
    """How it ended, and the signal that was sent. A driver takes signals for itself, and gives them back."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    path = Path(job.storage) / "one"
    with driver.Orders(run, path) as orders:
        status, reason = driver.follow(run, path, show, orders)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return status, reason, orders.signal


def end(job: Job, **figures: Any) -> None:
    run = RunDir(Path(job.storage) / "one")
    run.append_event("run_ended", **figures)
    run.write_run(figures)
    run.close()


def test_a_run_without_an_end_on_record_may_be_running(job: Job) -> None:
    assert driver.unfinished(job)
    assert not driver.unfinished(job.model_copy(update={"run_id": "another"}))
    assert not driver.unfinished(job.model_copy(update={"run_id": None}))
    end(job, status="done", reason="")
    assert not driver.unfinished(job)


def test_a_run_is_followed_with_the_settings_it_has(job: Job) -> None:
    driver.check_same(job)
    driver.check_same(job.model_copy(update={"mlflow": job.mlflow.model_copy(update={"uri": "http://other"})}))
    with pytest.raises(UserError, match=r"running now, with other settings of seed, workload\.path") as refused:
        driver.check_same(job.model_copy(update={"seed": 1, "workload": {"path": "a:C"}}))
    assert "shoal stop one" in refused.value.remedy


@pytest.mark.parametrize("run", [Silent(), Dead()])
def test_the_record_tells_the_end_if_the_controller_cannot(
    job: Job, run: driver.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "PATIENCE", 0.2)
    end(job, status="stopped", reason="by hand")
    seen: list[str] = []
    found = followed(run, job, lambda kind, line: seen.append(line["kind"]))
    assert found == ("stopped", "by hand", None)
    assert seen == ["run_ended"]


def test_a_controller_that_died_leaves_a_run_to_go_on_with(job: Job) -> None:
    status, reason, _ = followed(Dead(), job)
    assert status == "failed"
    assert "the controller died (killed); go on with `shoal train ... --resume run_id=one`" in reason


def test_a_driver_whose_cluster_is_gone_obeys_a_signal(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "UNHEARD", 0.2)
    run = Silent()
    threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,)).start()
    status, reason, sent = followed(run, job)
    assert (status, sent) == ("left", signal.SIGINT)
    assert "its controller does not answer" in reason
    assert run.orders == [("stopped by SIGINT", True)]
    assert "told to save its state and end" in capsys.readouterr().err


def test_a_second_signal_ends_the_run_at_once_and_a_third_the_driver(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "UNHEARD", 3600.0)
    run = Silent()
    for number in (1, 2, 3):
        threading.Timer(0.3 * number, signal.raise_signal, (signal.SIGTERM,)).start()
    status, _, sent = followed(run, job)
    assert (status, sent) == ("left", signal.SIGTERM)
    assert run.orders == [("stopped by SIGTERM", True), ("stopped by SIGTERM", False)]


def test_a_driver_that_is_not_the_main_thread_takes_no_signals(job: Job) -> None:
    end(job, status="stopped", reason="by hand")
    found: list[tuple[str, str, int | None]] = []
    thread = threading.Thread(target=lambda: found.append(followed(Dead(), job)))
    thread.start()
    thread.join()
    assert found == [("stopped", "by hand", None)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"loss": 8.25, "lm_loss": 8.0, "grad_norm": 1.0, "lr": 1e-3, "cells": 1},
         "step     2/4  loss 8.2500  lm_loss 8.0000  grad norm 1.000  lr 1.00e-03  1 cell  200 tokens/s"),
        ({"loss": None, "lm_loss": None, "grad_norm": None, "lr": None, "cells": 2},
         "step     2/4  loss -  grad norm -  lr -  2 cells  200 tokens/s"),
        ({"loss": 2.0, "lm_loss": 2.0, "grad_norm": 1.0, "lr": 0.0, "cells": 2},
         "step     2/4  loss 2.0000  grad norm 1.000  lr 0.00e+00  2 cells  200 tokens/s"),
    ],
)  # fmt: skip
def test_a_line_of_a_step(line: dict[str, Any], words: str) -> None:
    """Tokens a second are those of the workers' clock, however late and close together commits arrive."""
    out = io.StringIO()
    printer = Printer(4, out)
    printer.every = 2
    printer.show("step", {"step": 0, "tokens": 100, "seconds": 9.0, "worker_seconds": 0.5, **line})
    printer.show("step", {"step": 1, "tokens": 100, "seconds": 0.001, "worker_seconds": 0.5, **line})
    printer.show("event", {"kind": "node_lost", "time": 0.0, "node": "n\x1b[2J"})
    printer.show("event", {"kind": "drain", "time": 0.0})
    assert out.getvalue().splitlines() == [words, "  Node n\\x1b[2J is lost."]


def test_a_retry_goes_on_or_starts_or_has_nothing_to_do(job: Job) -> None:
    assert on_record(job)
    assert not on_record(job.model_copy(update={"run_id": "two"}))
    with pytest.raises(UserError, match="--resume-or-start needs the run's name"):
        on_record(job.model_copy(update={"run_id": None}))
    assert not done(job)
    end(job, status="done", steps=4)
    assert done(job)
    assert not done(job.model_copy(update={"steps": 5}))


def test_what_rays_threads_raise_is_kept_from_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log = io.StringIO()

    def fail() -> None:
        raise OSError("gone")

    with threads_tell(log):
        thread = threading.Thread(target=fail, name="listener")
        thread.start()
        thread.join()
    assert log.getvalue() == "listener: OSError: gone\n"
    assert capsys.readouterr().err == ""
