"""The MLflow mirror: everything once, in one MLflow run, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal import tracking
from shoal.record import layout
from tests.support.mirrored import CONFIG, a_recovery, a_run, a_step

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from mlflow.entities import Run
from mlflow.tracking import MlflowClient


def client_of(storage: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")


def only_run(storage: Path) -> Run:
    client = client_of(storage)
    (experiment,) = [found for found in client.search_experiments() if found.name == "shoal"]
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def history(storage: Path, run: Run, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client_of(storage).get_metric_history(run.info.run_id, key)]


def wait_until(ready: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def logged_step(storage: Path) -> int:
    try:
        return int(json.loads(only_run(storage).data.tags["shoal.logged"])["step"])
    except (KeyError, ValueError):
        return -1


@pytest.fixture
def storage(tmp_path: Path, mlflow_database: Path) -> Path:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    return tmp_path


def test_one_mlflow_run_with_every_step_once_though_the_mirror_is_killed_and_the_run_resumed(storage: Path) -> None:
    run = a_run(storage, 10)
    first = tracking.start(run.path)
    wait_until(lambda: (run.path / layout.MLFLOW).exists() and logged_step(storage) == 9)
    a_recovery(run)
    for step in range(10, 14):
        run.append_step(a_step(step))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    run.append_event("run_ended", status="stopped")
    run.close()

    run = a_run(storage, 20, {**CONFIG, "steps": 50}, resume=True)
    run.append_event("evaluation", step=20, bpb=1.75)
    run.append_event("checkpoint", step=20, path="checkpoints/20", seconds=0.5, bytes=1000)
    second = tracking.start(run.path)
    run.append_event("run_ended", status="done")
    run.write_run({"status": "done"})
    run.replace_plan([])
    (run.path / layout.REPORT).write_text("<html></html>")
    assert tracking.finish(second, run.path, None, "shoal", 60) is None

    found = only_run(storage)
    about = json.loads((run.path / layout.MLFLOW).read_text())
    assert (about["mlflow_run_id"], about["complete"]) == (found.info.run_id, True)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "job"
    assert history(storage, found, "loss") == [(step + 1, pytest.approx(3.0 / (step + 1))) for step in range(20)]
    assert history(storage, found, "recovery.next_commit") == [(10, 0.31)]
    assert history(storage, found, "recovery.phase.detect") == [(10, 0.08)]
    assert history(storage, found, "bpb") == [(20, 1.75)]
    assert history(storage, found, "checkpoint.bytes") == [(20, 1000)]
    assert found.data.params["workload.lr"] == "0.001"
    assert found.data.params["steps"] == "40"
    assert found.data.tags["changed.steps"] == "50"
    assert found.data.tags["shoal.recovery.1"] == "Node node3 died; nothing was lost."
    names = {item.path for item in client_of(storage).list_artifacts(found.info.run_id)}
    assert names == {layout.EVENTS, layout.PLAN, layout.RUN, layout.REPORT}
    assert (storage / "mlartifacts").is_dir()
    told = (run.path / tracking.LOG).read_text() + str(found.data.params) + str(found.data.tags)
    assert "hunter" not in told


def test_the_mirror_ends_with_its_parent(storage: Path) -> None:
    run = a_run(storage, 3)
    code = (
        "import sys; from shoal import tracking; print(tracking.start(sys.argv[1]).pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_until(lambda: (run.path / layout.MLFLOW).exists() and logged_step(storage) == 2)
    parent.kill()
    parent.wait()

    wait_until(lambda: gone(pid))
    assert only_run(storage).info.status == "RUNNING"


def test_a_finished_record_can_be_sent_later_by_hand(storage: Path) -> None:
    run = a_run(storage, 5, {"run_id": "job"})
    run.append_event("run_ended", status="failed", reason="no slots")
    tracking.send(run.path)
    assert tracking.behind(run.path) is None
    found = only_run(storage)
    assert found.info.status == "FAILED"
    assert [step for step, _ in history(storage, found, "loss")] == [1, 2, 3, 4, 5]


def test_a_server_that_never_answers_holds_nobody_up_and_is_tried_on_in_the_background(tmp_path: Path) -> None:
    run = a_run(tmp_path, 3)
    run.append_event("run_ended", status="done")
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://me:hunter2@127.0.0.1:{server.getsockname()[1]}"
        mirror = tracking.start(run.path, uri)
        server.accept()[0].close()  # it is up and asks
        told = tracking.finish(mirror, run.path, uri, "shoal", 1.0)
        assert mirror.returncode is not None
        assert told is not None
        assert "python -m shoal.tracking" in told
        lock = run.path / tracking.LOCK
        wait_until(lambda: lock.read_text().strip() not in ("", str(mirror.pid)))
        another = int(lock.read_text())
        server.accept()[0].close()  # the other one asks too
        os.kill(another, signal.SIGTERM)
        wait_until(lambda: gone(another))
    assert "hunter" not in (run.path / tracking.LOG).read_text()


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().split(")")[1].split()[0] == "Z"


@pytest.mark.parametrize("what", ["folder", "garbage"])
def test_a_database_that_is_none_is_said_at_once(tmp_path: Path, what: str) -> None:
    run = a_run(tmp_path, 3, {"run_id": "job"})
    database = tmp_path / "mlflow.db"
    if what == "folder":
        database.mkdir()
    else:
        database.write_bytes(b"garbage" * 100)
    mirror = tracking.start(run.path)
    told = tracking.finish(mirror, run.path, None, "shoal", 600.0)
    assert mirror.returncode == 2
    assert told is not None
    assert "mlflow.db is " in (run.path / tracking.LOG).read_text()


def test_odd_keys_and_names_block_nothing(storage: Path) -> None:
    from shoal.tracking.mirror import Mirror

    odd = {
        "bad key /:|": 1,
        "z" * 400: 2,
        "..": 3,
        "../../x": 4,
        "a\x1b[2J\ud800": "v\x1b\ud800",
        "long": "a" * 100_000,
    }
    run = a_run(storage, 0, {"workload": {**odd, "inner": odd}})
    run.append_step(a_step(0, **{"max violation /:|": 2.0, "..": 1.0, "huge": 10**400}))
    run.append_event("recovery", phases={"a/../b": 1.0}, next_commit="soon")
    run.append_event("run_ended", status="done")
    mirror = Mirror(run.path, tracking.default_uri(run.path), "shoal")
    mirror.sync()
    mirror.close()
    found = only_run(storage)
    assert found.data.params["workload.bad key ___"] == "1"
    assert found.data.params["workload.a__2J_"] == "v\\x1b\\ud800"
    assert len(found.data.params["workload.long"]) == 6000
    assert found.data.metrics["max violation ___"] == 2.0
    assert found.info.status == "FINISHED"


def test_a_run_folder_may_have_any_name(storage: Path) -> None:
    from shoal.tracking.mirror import Mirror

    run = a_run(storage, 2)
    run.append_event("run_ended", status="done")
    odd = run.path.rename(storage / "r' OR '1'='1\\\"`")
    for _ in range(2):  # found again by its tag
        (odd / layout.MLFLOW).unlink(missing_ok=True)
        mirror = Mirror(odd, tracking.default_uri(odd), "shoal")
        mirror.sync()
        mirror.close()
    assert only_run(storage).info.status == "FINISHED"


def test_a_run_deleted_in_mlflow_is_begun_anew_and_that_is_said(
    storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from shoal.tracking.mirror import Mirror

    run = a_run(storage, 4)
    a_recovery(run)
    mirror = Mirror(run.path, tracking.default_uri(run.path), "shoal")
    mirror.sync()
    first = only_run(storage).info.run_id
    client_of(storage).delete_run(first)
    run.append_step(a_step(4))
    mirror.sync()
    run.append_event("run_ended", status="done")
    mirror.sync()
    mirror.close()
    second = only_run(storage)
    assert second.info.run_id != first
    assert [step for step, _ in history(storage, second, "loss")] == [1, 2, 3, 4, 5]
    assert second.data.tags["shoal.recovery.1"] == "Node node3 died; nothing was lost."
    assert [line.getMessage() for line in caplog.records if line.name.startswith("shoal.")] == [
        f"the MLflow run {first} is not there any more: {second.info.run_id} has the whole record from now on"
    ]


def test_a_store_that_fails_loses_nothing(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the calls to MLflow fail, half of those after they took effect."""
    from shoal.tracking.mirror import Mirror

    dice = random.Random(7)

    def flaky(name: str) -> None:
        real = getattr(MlflowClient, name)

        def call(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
            fate = dice.random()
            if fate < 1 / 6:
                raise ConnectionError("before")
            result = real(self, *args, **kwargs)
            if fate > 5 / 6:
                raise ConnectionError("after")
            return result

        monkeypatch.setattr(MlflowClient, name, call)

    for name in ("create_experiment", "create_run", "log_batch", "log_artifact", "search_runs", "update_run"):
        flaky(name)
    run = a_run(storage, 130)
    a_recovery(run)
    run.append_event("run_ended", status="done")
    mirror = Mirror(run.path, tracking.default_uri(run.path), "shoal")
    failures = 0
    while failures < 60:
        try:
            mirror.sync()
            mirror.close()
            break
        except ConnectionError:
            failures += 1
    monkeypatch.undo()
    assert 2 < failures < 60
    found = only_run(storage)
    assert [step for step, _ in history(storage, found, "loss")] == list(range(1, 131))
    assert history(storage, found, "recovery.full_strength") == [(130, 0.62)]
    assert found.info.status == "FINISHED"
