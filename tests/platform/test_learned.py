"""`shoal plan --learn` and `--validate` of runs: plans are corrected by what runs took, and say so."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from shoal.cli.learned import factors, measured, runs_table
from shoal.cli.main import app
from shoal.record.rundir import RunDir
from shoal_core.errors import UserError
from shoal_core.workload import Crew
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate import Cluster, estimate, hardware, memory_over_step
from shoal_workloads.estimate.expected import expected
from shoal_workloads.estimate.hardware import Learned, own_file

CELLS = {"a": (1, 1, 512, 8), "b": (2, 1, 1024, 4), "c": (1, 4, 512, 16), "d": (1, 8, 2048, 8), "e": (4, 2, 1024, 16)}
"""Runs: cells, workers of each, length of a sample, samples of a step."""
DEVICE = "NVIDIA H100 80GB HBM3"
PLAN = ["plan", "--model", "laptop-100m", "--cluster", "1x8xH100", "--pp", "1", "--ep", "1", "--precision", "bf16"]


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SHOAL_HARDWARE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return own_file()


def config(length: int, samples: int) -> PretrainConfig:
    section = {
        "model": {"preset": "laptop-100m"}, "data": {"corpus": "none", "seq_len": length}, "precision": "bf16",
        "batch": {"global_batch": 8 * samples, "micro_batch": 1}, "device": "cuda",
    }  # fmt: skip
    return PretrainConfig.model_validate(section)


def truth(name: str) -> tuple[float, int]:
    """Seconds of a step and bytes on a machine that is another than the table's H100: its memory is slower and it
    reaches less of its peak, and its allocator wastes more."""
    cells, workers, length, samples = CELLS[name]
    entry = hardware("H100")
    reached = entry.reached.model_copy(update={"bf16": 0.6})
    changes = {"memory_tb_s": entry.memory_tb_s / 1.5, "reached": reached, "learned": None}
    slower = entry.model_copy(update=changes)
    found = estimate(config(length, samples), Cluster(1, 8, "H100", slower), workers, cells)
    return found.seconds, round(1.1 * found.memory.total)


def ran(storage: Path, name: str, status: str = "done", **figures: Any) -> Path:
    """A run that took what is true, and was predicted by the table as it is now."""
    cells, workers, length, samples = CELLS[name]
    told = expected(
        config(length, samples), 8 * samples, cells, Crew(workers, 1, 8, "NVIDIA H100 80GB HBM3", 85 * 10**9)
    )
    seconds, size = truth(name)
    run = RunDir.create(storage, name, {"run_id": name}, resume=False)
    run.append_event("run_started", run_id=name, steps=9, cells=cells, workers_per_cell=workers, time=1.0)
    run.append_event("generation", generation=0, step=0, live=cells, cells={}, time=1.5)
    where = {"shape": 0, "cells": cells, "workers": workers, "nodes": 1, "device": DEVICE}
    run.append_event("predicted", **where, figures=told | figures, time=1.6)
    run.append_event("memory", actor="w", step=4, bytes=size, measured="device", shape=0, time=3.0)
    for step in range(9):
        first = step * 8 * samples
        run.append_step({
            "step": step, "time": 2.0 + step, "loss": 4.0, "lm_loss": 4.0, "mtp_loss": None, "grad_norm": 1.0,
            "lr": 1e-3, "tokens": 8 * samples * length, "samples": [first, first + 8 * samples], "cells": cells,
            "generation": 0, "seconds": seconds, "worker_seconds": seconds,
        })  # fmt: skip
    if status != "running":
        run.append_event("run_ended", status=status, time=20.0)
    return run.path


def errors(storage: Path) -> dict[str, float]:
    return {one.name: abs(one.error("step_seconds") or 0.0) for one in measured([], str(storage))}


def test_what_two_runs_teach_makes_the_prediction_of_three_others_better(tmp_path: Path, table: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for name in CELLS:
        ran(before, name)
    assert all(error > 0.1 for error in errors(before).values())
    told = CliRunner().invoke(app, ["plan", "--learn", str(before / "a"), str(before / "d"), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["learned"]["runs"] == ["a", "d"]
    kept = yaml.safe_load(table.read_text())["H100"]["learned"]["step"]
    assert kept == pytest.approx(found["learned"]["step"], rel=1e-3)
    assert found["learned"]["memory"] == pytest.approx(1.1, abs=1e-3)
    for name in "bce":
        ran(after, name)
    worse = {name for name, error in errors(after).items() if error >= errors(before)[name] / 2}
    assert not worse
    for one in measured([], str(after)):
        assert one.error("memory_peak_bytes") == pytest.approx(0.0, abs=1e-3)
    # Learned anew from corrected predictions it comes to the same as from those before: factors do not pile up.
    again = [one.step for one in (factors(measured(["b", "c"], str(place))) for place in (before, after))]
    assert again[0] == pytest.approx(again[1], rel=1e-3)


def test_later_plans_are_corrected_in_all_their_parts_and_say_so(tmp_path: Path) -> None:
    plain = json.loads(CliRunner().invoke(app, [*PLAN, "--json"]).stdout)
    ran(tmp_path, "b")
    assert CliRunner().invoke(app, ["plan", "--learn", "b", "--storage", str(tmp_path)]).exit_code == 0
    found = json.loads(CliRunner().invoke(app, [*PLAN, "--json"]).stdout)
    learned = hardware("H100").learned
    assert learned is not None
    assert found["step_seconds"] == pytest.approx(learned.step * plain["step_seconds"])
    assert found["memory_peak_bytes"] == pytest.approx(learned.memory * plain["memory_peak_bytes"], rel=1e-6)
    assert any("corrected by what run b took" in reason for reason in found["reasons"])
    assert not any("corrected" in reason for reason in plain["reasons"])


def test_a_pipeline_is_corrected_with_its_times() -> None:
    entry = hardware("H800")
    piped = config(512, 16).model_copy(
        update={"parallel": config(512, 16).parallel.model_copy(update={"pp": 2, "ep": 2})}
    )
    learned = entry.model_copy(update={"learned": Learned(step=2.0, memory=1.5, runs=("a",), of="2026-11-30")})
    one, other = (estimate(piped, Cluster(1, 8, "H800", kind), 4, 2) for kind in (entry, learned))
    assert one.pipeline
    assert other.pipeline
    assert other.pipeline.timeline.makespan == pytest.approx(2 * one.pipeline.timeline.makespan)
    ends = [span.end for found in (one, other) for span in found.pipeline.timeline.spans[1][-1:] if found.pipeline]
    assert ends[1] == pytest.approx(2 * ends[0])
    rows = [
        sum(both.hidden + both.exposed for rank in found.pipeline.exchange for both in rank) for found in (one, other)
    ]
    assert rows[1] > 0
    assert rows[1] == pytest.approx(2 * rows[0])
    most = [max(sum(parts.values()) for _, parts in memory_over_step(found)) for found in (one, other)]
    assert most[1] == pytest.approx(1.5 * most[0], rel=1e-6)
    assert other.memory.total == most[1]


def test_runs_stand_beside_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.cli.validate.interrupted", lambda: iter(()))  # a simulation of 54 days: others test it
    ran(tmp_path, "a")
    ran(tmp_path, "b", status="running")
    found = json.loads(CliRunner().invoke(app, ["plan", "--validate", "--storage", str(tmp_path), "--json"]).stdout)
    assert {one["run"] for one in found["runs"]} == {"a", "b"}
    one = found["runs"][0]["step_seconds"]
    assert one["error"] == pytest.approx(one["predicted"] / one["actual"] - 1)
    assert 19.926 in [figure["published"] for figure in found["published"]]  # seconds of V3's step
    monkeypatch.setenv("SHOAL_STORAGE", str(tmp_path))
    (row,) = measured(["a"], None)
    console = Console(width=200, record=True, file=StringIO())
    console.print(runs_table([row]))
    assert f"{row.error('step_seconds'):+.1%}" in console.export_text()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda at: ran(at, "a", status="running"), "run a is still running"),
        (lambda at: ran(at, "a", step_seconds=None, why=["no table knows it"]), "not predicted (no table knows it)"),
        (lambda at: ran(at, "a", hardware=None), "run a: its workload does not say"),
        (lambda at: ran(at, "a", samples=1), "run a: too few steps"),
        (
            lambda at: RunDir.create(at, "a", {}, resume=False).append_event("run_started"),
            "run a: nothing was predicted",
        ),
        (lambda at: ran(at, "a", hardware="H200"), "run a is of a H200, run b of a H100"),
    ],
)
def test_a_run_that_teaches_nothing_is_refused_by_name(tmp_path: Path, table: Path, make: Any, problem: str) -> None:
    ran(tmp_path, "b")
    make(tmp_path)
    error = CliRunner().invoke(app, ["plan", "--learn", "b", "a", "--storage", str(tmp_path)]).exception
    assert isinstance(error, UserError)
    assert problem in error.problem
    assert error.remedy
    assert not table.exists()


def test_a_table_that_is_none_is_not_written_over(tmp_path: Path, table: Path) -> None:
    ran(tmp_path, "b")
    table.parent.mkdir(parents=True)
    table.write_text("H100: {tflops: many}\n")
    error = CliRunner().invoke(app, ["plan", "--learn", "b", "--storage", str(tmp_path)]).exception
    assert isinstance(error, UserError)
    assert table.read_text() == "H100: {tflops: many}\n"
