"""`shoal status`, `shoal runs` and `shoal report` on run directories alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from shoal.cli.report import report
from shoal.cli.status import runs, status
from shoal.record import index, layout
from shoal.record.rundir import RunDir
from shoal.record.status import snapshot
from shoal_core.errors import UserError

app = typer.Typer()
for command in (status, runs, report):
    app.command()(command)

WORKER = {"actor": "job/cell0/stage0/shard1@node2", "pid": 77, "node": "node2", "cell": 0,
          "coords": {"stage": 0, "shard": 1}, "step": 5, "heartbeat_age": 0.2}  # fmt: skip
SPARE = {"actor": "job/spare0@node3", "pid": 78, "node": "node3", "cell": None, "coords": None, "step": -1,
         "heartbeat_age": 0.1}  # fmt: skip
STATUS: dict[str, Any] = {"run_id": "job", "status": "running", "step": 5, "steps": 20, "loss": 3.25, "cells": 2,
                          "tokens_per_second": 8123.4, "generation": 1, "workers": [SPARE, WORKER]}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir.create(tmp_path, "job", {}, resume=False)
    made.append_event("run_started", run_id="job", steps=20, cells=2, workers_per_cell=2)
    return made


def call(*words: object) -> str:
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_json_has_the_fields_of_the_contract(run: RunDir) -> None:
    run.write_status(STATUS)
    found = json.loads(call("status", "job", "--storage", run.path.parent, "--json"))
    assert {"run_id", "status", "step", "workers"} <= found.keys()
    assert [found["run_id"], found["status"], found["step"]] == ["job", "running", 5]
    assert found["silent"] is False
    for worker in found["workers"]:
        assert worker.keys() == {"actor", "pid", "node", "cell", "coords", "step", "heartbeat_age"}
    assert found == json.loads(call("status", run.path, "--json")) | {"age": found["age"], "workers": found["workers"]}


def test_heartbeats_age_with_the_file_and_a_silent_controller_is_told(run: RunDir) -> None:
    run.write_status({**STATUS, "written": 1000.0})
    assert [worker["heartbeat_age"] for worker in snapshot(run.path, now=1004.0)["workers"]] == [4.1, 4.2]
    assert snapshot(run.path, now=1004.0)["silent"] is False
    assert snapshot(run.path, now=1030.0)["silent"] is True
    assert snapshot(run.path, now=990.0)["age"] == 0.0  # another machine's clock
    text = call("status", "job", "--storage", run.path.parent)
    assert "silent" in text
    assert "has written nothing for" in text
    run.write_status({**STATUS, "status": "done", "workers": [], "written": 1000.0})
    assert snapshot(run.path, now=1030.0)["silent"] is False


def test_the_picture_shows_cells_before_spares_and_the_last_events(run: RunDir) -> None:
    run.write_status(STATUS)
    run.append_event("checkpoint", step=4, path="p", seconds=0.5, bytes=2_000_000)
    text = call("status", "--storage", run.path.parent)
    for words in ("job", "running", "loss 3.2500", "8,123 tokens/s", "2 cells", "stage  shard  node", "node2", "77",
                  "step 5 of 20", "cell0/stage0/shard1@node2", "Checkpoint of step 4 is whole (2.0 MB"):  # fmt: skip
        assert words in text
    assert text.index("shard1@node2") < text.index("spare0@node3")


def test_without_a_snapshot_the_record_speaks(tmp_path: Path) -> None:
    young = RunDir.create(tmp_path, "young", {}, resume=False)
    assert [snapshot(young.path)[key] for key in ("run_id", "status", "step", "workers")] == [
        "young",
        "starting",
        0,
        [],
    ]
    assert "has not written yet" in call("status", "young", "--storage", tmp_path)
    young.append_event("run_started", run_id="young", steps=3, cells=1, workers_per_cell=1)
    young.append_event("run_ended", status="failed", reason="no slots")
    found = snapshot(young.path)
    assert [found[key] for key in ("status", "step", "steps", "silent")] == ["failed", 0, 3, False]


def test_watch_ends_with_the_run(run: RunDir) -> None:
    run.write_status({**STATUS, "status": "done", "workers": []})
    assert "done" in call("status", run.path, "--watch")
    assert call("status", run.path, "--watch", "--json").count("\n") == 1


def test_runs_lists_the_last_active_first(tmp_path: Path) -> None:
    assert "no runs" in call("runs", "--storage", tmp_path)
    for command in (["runs"], ["status"], ["status", "newer"], ["report", "newer"]):
        with pytest.raises(UserError, match="mistyped: there is no such folder"):
            call(*command, "--storage", tmp_path / "mistyped")
    for second, name in enumerate(("older", "newer"), start=1):
        made = RunDir.create(tmp_path, name, {}, resume=False)
        os.utime(made.path / layout.EVENTS, (second, second))
    text = call("runs", "--storage", tmp_path)
    assert text.index("newer") < text.index("older")


def test_one_damaged_record_hides_no_other(tmp_path: Path) -> None:
    for name in ("good", "hurt", "gone"):
        made = RunDir.create(tmp_path, name, {}, resume=False)
        made.append_event("run_started", run_id=name, steps=20, cells=2, workers_per_cell=2)
    (tmp_path / "hurt" / layout.STATUS).write_bytes(b"")
    with open(tmp_path / "gone" / layout.EVENTS, "ab") as file:
        file.write(b"garbage\n")
    text = call("runs", "--storage", tmp_path).replace("\n", "")
    assert "good" in text
    assert text.count("damaged: ") == 2
    assert "status.json is not JSON" in text
    assert "events.jsonl:2 is not JSON" in text
    with pytest.raises(UserError, match=r"status\.json is not JSON"):
        call("status", "hurt", "--storage", tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"workers": [5]}, {"workers": [{**WORKER, "heartbeat_age": "x"}]}, {"written": None}, {"step": "5"},
     {"loss": "low"}, {"workers": [{**WORKER, "step": 1.5}]}],
)  # fmt: skip
def test_a_status_that_is_not_as_it_should_be_is_one_sentence(run: RunDir, wrong: dict[str, Any]) -> None:
    (run.path / layout.STATUS).write_text(json.dumps({**STATUS, "written": 5.0, **wrong} if wrong else {"run_id": "x"}))
    with pytest.raises(UserError, match=r"status\.json: .*\n  remedy: remove it"):
        snapshot(run.path)


def test_names_are_no_markup_and_no_escapes(run: RunDir) -> None:
    node = "[red]n\x1b[2J\u202e[/nope]"
    run.write_status(
        {**STATUS, "run_id": "[/b]job\x9b", "workers": [{**WORKER, "node": node, "actor": f"a/[b]@{node}"}]}
    )
    run.append_event("node_lost", node=node)
    text = call("status", "--storage", run.path.parent)
    for words in (
        "[/b]job\\x9b",
        "[red]n\\x1b[2J\\u202e[/nope]",
        "[b]@[red]n",
        "Node [red]n\\x1b[2J\\u202e[/nope] is lost",
    ):
        assert words in text
    assert not set(text) & set("\x1b\x9b\u202e")


def test_a_run_started_from_this_machine_is_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    assert "no runs" in call("runs")
    made = RunDir.create(tmp_path / "far", "job", {}, resume=False)
    index.note("job", str(made.path))
    index.note("gone", str(tmp_path / "nowhere" / "gone"))
    assert "job" in call("status", "job")
    assert "job" in call("status")
    text = call("runs")
    assert str(tmp_path / "far") in text.replace("\n", "").replace(" ", "")
    assert "gone" not in text
    with pytest.raises(UserError, match="no run 'gone' here or among those started from this machine"):
        call("status", "gone")
    with pytest.raises(UserError, match="no run 'job' in"):
        call("status", "job", "--storage", tmp_path / "state")
    for name in ("job", "gone"):
        os.utime(index.folder() / name, (1, 1))
    index.note("next", str(tmp_path / "next"))
    assert index.known() == [str(made.path), str(tmp_path / "next")]  # what is long gone is forgotten


def test_an_unknown_run_is_one_clear_message(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "job", {}, resume=False)
    with pytest.raises(UserError, match=r"no run 'jib'(.|\n)*one of job"):
        call("status", "jib", "--storage", tmp_path)


def test_report_is_written_while_the_run_goes_on(run: RunDir) -> None:
    where = call("report", "job", "--storage", run.path.parent).strip().replace("\n", "")
    assert where == str(run.path / layout.REPORT)
    assert time.time() - Path(where).stat().st_mtime < 600


def test_one_picture_of_a_run_is_drawn(run: RunDir, tmp_path: Path) -> None:
    for target, begins in ((tmp_path / "run.svg", b"<svg"), (tmp_path / "run.png", b"\x89PNG")):
        call("report", "job", "--storage", run.path.parent, "--picture", target)
        assert target.read_bytes().startswith(begins)
    with pytest.raises(UserError, match=r"run\.pdf is neither \.svg nor \.png"):
        call("report", "job", "--storage", run.path.parent, "--picture", tmp_path / "run.pdf")
