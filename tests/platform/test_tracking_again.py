"""A mirror that begins in the middle of a long record reads none of what MLflow has, and asks for no history; and a
store that does not take the record is told of once."""

from __future__ import annotations

import http.server
import json
import logging
import os
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal import tracking
from shoal.record import layout, read, tails
from shoal.record.jsonl import parse_line
from shoal.record.rundir import RunDir
from shoal.record.tails import After
from shoal.worker.machine import Machine
from tests.support.mirrored import a_recovery, a_run, a_step

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from mlflow.tracking import MlflowClient

from shoal.tracking import __main__ as process
from shoal.tracking.mirror import Mirror

STEPS, FIGURES = 125_000, 8
"""A million points."""


@pytest.fixture
def storage(tmp_path: Path, mlflow_database: Path) -> Path:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    return tmp_path


def mirror_of(run: RunDir) -> Mirror:
    return Mirror(run.path, tracking.default_uri(run.path), "shoal")


def only_run(storage: Path) -> Any:
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("shoal")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    return found


def history(storage: Path, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    return [(point.step, point.value) for point in client.get_metric_history(only_run(storage).info.run_id, key)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is asked of MLflow, and how many lines of a record are parsed."""
    counts: Counter[str] = Counter()
    for name in [name for name in vars(MlflowClient) if not name.startswith("_")]:
        real = getattr(MlflowClient, name)
        if callable(real):

            def call(self: Any, *args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
                counts[name] += 1
                return real(self, *args, **kwargs)

            monkeypatch.setattr(MlflowClient, name, call)

    def parse(*args: Any) -> Any:
        counts["lines"] += 1
        return parse_line(*args)

    monkeypatch.setattr(tails, "parse_line", parse)
    return counts


@pytest.mark.parametrize("known", [True, False])
def test_a_new_process_at_a_million_points_reads_and_asks_as_little_as_one_at_ten(
    storage: Path, counted: Counter[str], known: bool
) -> None:
    """`known`: the run's own note of its MLflow run is there; else it is found by one search for its tag."""
    run = a_run(storage, 2)
    a_recovery(run)
    first = mirror_of(run)
    first.sync()
    asked = dict(counted)
    run.close()
    line = json.dumps({"time": 2e9, **a_step(0)}).removeprefix("{").replace('"step": 0, ', "")
    with open(run.path / layout.STEPS, "a") as file:
        file.writelines(f'{{"step": {step}, {line}\n' for step in range(2, STEPS))
    assert first._store is not None
    first._store.log([], STEPS - 1, 2, first._store.at, {})  # as if all of it had been sent
    run = a_run(storage, STEPS + 3, resume=True)
    a_recovery(run)
    if not known:
        (run.path / layout.MLFLOW).unlink()
    counted.clear()
    again = mirror_of(run)
    again.sync()
    assert counted["get_metric_history"] == counted["get_metric_history_bulk"] == 0
    assert counted["search_runs"] == (0 if known else 1)
    assert sum(counted.values()) - counted["lines"] <= sum(asked.values()) + 3
    assert counted["lines"] < 60  # some tens to find the place, and what is new
    found = only_run(storage)
    assert [step for step, _ in history(storage, "loss")] == [1, 2, *range(STEPS + 1, STEPS + 4)]
    assert (found.data.tags["shoal.recoveries"], len(history(storage, "recovery.next_commit"))) == ("2", 2)
    assert found.data.tags["shoal.recovery.2"] == "Node node3 died; nothing was lost."


def test_steps_that_are_taken_back_and_done_again_are_found_by_halving_too(storage: Path) -> None:
    run = a_run(storage, 300)
    first = mirror_of(run)
    first.sync()
    run.truncate_steps(100)
    run.append_event("rewound", to=100, lost=200)
    first.sync()
    for step in range(100, 310):
        run.append_step(a_step(step, loss=7.0))
        if step == 200:
            first.sync()
    mirror_of(run).sync()  # another process
    losses = history(storage, "loss")
    assert [step for step, _ in losses] == list(range(1, 311))
    assert [value for _, value in losses[300:]] == [7.0] * 10  # the others keep what they had
    assert only_run(storage).data.tags["shoal.steps_lost"] == "200"


def test_after_finds_its_place_wherever_that_is(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    numbers = [3, 4, 7, 8, 20, 21, 22, 50]
    lines = [json.dumps({"n": number, "x": "y" * (number * 7 % 60)}) + "\n" for number in numbers]
    for text in ("".join(lines), "".join(lines) + '{"n": 60', ""):
        path.write_text(text)
        for last in range(-1, 62):
            one = After(path, "n", last)
            assert [line["n"] for line in one.read()] == [n for n in numbers if n > last and text]
            assert one.read() == []
            one.close()
    assert After(tmp_path / "none", "n", 0).read() == []


def test_a_journal_that_is_another_is_read_from_its_beginning(tmp_path: Path) -> None:
    run = a_run(tmp_path, 0)
    a_recovery(run)
    whole = (run.path / layout.EVENTS).stat().st_size
    assert read.tail_events(run.path, (whole, 2)).read() == []
    assert len(read.tail_events(run.path, (whole - 3, 2)).read()) == 2
    assert len(read.tail_events(run.path, (whole + 3, 2)).read()) == 2
    one = read.tail_events(run.path, (whole, 2))
    one.read()
    a_recovery(run)
    assert len(one.read()) == 1
    assert one.position == ((run.path / layout.EVENTS).stat().st_size, 3)


def test_mfu_and_what_was_predicted_are_mirrored_beside_what_it_came_to(storage: Path) -> None:
    run = a_run(storage, 0)
    for step in range(3):
        run.append_step(a_step(step, mfu=0.25 + step / 64))
    run.append_event("run_ended", status="done")
    section = {"mfu": 0.45, "tokens_per_second": 1000, "days": 3.5, "layout": "pp 2"}
    run.write_run({"steps": 3, "tokens_per_second": 900.0, "gpu": {"mfu": 0.41}, "predicted": section})
    mirror = mirror_of(run)
    mirror.sync()
    mirror.close()
    assert history(storage, "mfu") == [(1, 0.25), (2, 0.265625), (3, 0.28125)]
    told = {name: value for name, value in only_run(storage).data.metrics.items() if "." in name}
    assert told == {"predicted.mfu": 0.45, "actual.mfu": 0.41, "predicted.tokens_per_second": 1000.0,
                    "actual.tokens_per_second": 900.0, "predicted.days": 3.5}  # fmt: skip


def test_every_node_has_system_metrics_now_and_then(storage: Path) -> None:
    run = a_run(storage, 3)
    mirror = mirror_of(run)
    picture = {"run_id": "job", "status": "running", "step": 3, "workers": []}
    figures = {"cpu_utilization_percentage": 50.0, "odd name/:": 1.0, "none": None}
    for second in range(25):
        nodes = {"n1": figures | {"cpu_utilization_percentage": float(second)}, "10.0.0.2:x/..": figures}
        run.write_status({**picture, "written": 1000.0 + second, "nodes": nodes})
        mirror.sync()
    points = history(storage, "system/n1/cpu_utilization_percentage")
    assert points == [(3, 0.0), (3, 10.0), (3, 20.0)]
    names = {name for name in only_run(storage).data.metrics if name.startswith("system/")}
    assert names == {"system/n1/cpu_utilization_percentage", "system/n1/odd name__",
                     "system/10.0.0.2_x_../cpu_utilization_percentage", "system/10.0.0.2_x_../odd name__"}  # fmt: skip
    run.append_event("run_ended", status="done")
    run.write_status({**picture, "written": 2000.0, "nodes": {"n1": figures}})
    mirror.sync()
    assert len(history(storage, "system/n1/cpu_utilization_percentage")) == 3


def test_a_machine_tells_figures_by_mlflows_names_and_not_all_the_time() -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for monitor in monitors:
        monitor.collect_metrics()
    one = Machine(period=3600.0)
    found = one.figures()
    assert found is not None
    assert set(found) == {name for monitor in monitors for name in monitor.metrics}
    assert 0 < found["system_memory_usage_percentage"] <= 100
    assert one.figures() is None


class Wrong(http.server.BaseHTTPRequestHandler):
    """No MLflow: whatever is asked, a page comes."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"<html>\n<p>\nnothing here\n" * 9)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def test_a_store_that_takes_nothing_is_told_of_once_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "POLL", 0.0)
    monkeypatch.setattr(process, "WORST_DELAY", 0.01)
    monkeypatch.setattr(process, "guard", lambda *_: None)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = a_run(tmp_path, 3)
    run.append_event("run_ended", status="done")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        told = SimpleNamespace(told=False, wait=lambda seconds: Wrong.asked > 5)
        uri = f"http://me:hunter2@127.0.0.1:{server.server_address[1]}"
        stop = cast(process.Stop, told)
        assert process.mirror(run.path, uri, "shoal", stop, attended=True, grace=0.0) == process.GAVE_UP
        server.shutdown()
    assert Wrong.asked > 5
    lines = [
        line.getMessage()
        for line in caplog.records
        if line.name == "shoal.tracking" and line.levelno >= logging.WARNING
    ]
    assert [line.partition(":")[0] for line in lines] == [
        "MLflow does not take the record, training goes on",
        "gave up; what is missing can be sent later with",
    ]
    assert "\n" not in lines[0]
