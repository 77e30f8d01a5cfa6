"""`shoal schedule`: what it prints, draws and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from shoal.cli.schedule import schedule
from shoal.record.rundir import RunDir
from shoal.report.pipeline import Bar, pipeline_figure
from shoal.report.style import svg
from shoal_core.errors import UserError
from shoal_workloads.parallel.schedule import Costs, build, picture, simulate

DUALPIPE = ("dualpipe", "--pp", "4", "--microbatches", "8")


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(schedule)
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, list(arguments))


def test_json_has_the_published_figures_and_every_order() -> None:
    found = json.loads(call(*DUALPIPE, "--json").stdout)
    assert (found["idle"], found["makespan"], found["peak_in_flight"]) == ([2] * 4, 26, [5] * 4)
    assert found["orders"][0][:8] == ["F0.0", "F0.1", "F0.2", "F3.4", "I3.4", "W3.4", "F3.5", "F0.3&B3.5"]
    times = ("--f", "2", "--b", "4", "--w", "2", "--fb", "6")
    assert json.loads(call(*DUALPIPE, *times, "--json").stdout)["makespan"] == 52


def test_text_can_be_read() -> None:
    lines = call("1f1b", "--pp", "2", "--microbatches", "3").stdout.splitlines()
    assert lines[1] == "rank 0  F0 F1 .  .  B0    F2 B1    .  B2"
    assert lines[2] == "rank 1  .  F0 B0    F1 B1    F2 B2    .  ."
    assert "makespan 12, idle 25.0%" in lines[-3]
    assert lines[-2].split()[-2:] == ["3", "3"]
    assert lines[-1].split()[-2:] == ["2", "1"]


def test_pictures_have_a_box_for_every_action(tmp_path: Path) -> None:
    vector, pixels = tmp_path / "a.svg", tmp_path / "a.png"
    assert call(*DUALPIPE, "--draw", str(vector)).exit_code == 0
    text = vector.read_text()
    assert text.startswith("<svg")
    labels = re.findall(r"<text[^>]*>(\d+)</text>", text)
    actions = sum(step.count(".") for order in orders() for step in order)
    assert sum(int(label) < 8 for label in labels) >= actions
    assert call(*DUALPIPE, "--draw", str(pixels)).exit_code == 0
    assert pixels.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]


def orders() -> list[list[str]]:
    found: list[list[str]] = json.loads(call(*DUALPIPE, "--json").stdout)["orders"]
    return found


def test_planned_and_measured_share_one_picture() -> None:
    planned = [[Bar("F0.0", 0, 1), Bar("B0.0", 3, 5)], [Bar("F1.0", 1, 2), Bar("B1.0", 2, 3)]]
    later = [[Bar(step, 100 + 2 * start, 100 + 2 * end) for step, start, end in lane] for lane in planned]
    text = svg(pipeline_figure(planned, later, "s"), "step")
    assert "Planned: 5 s, idle 50.0%" in text
    assert "Measured: 10 s, idle 50.0%" in text


def journal(storage: Path) -> None:
    """A run of 1F1B on two ranks: forwards of 0.5 s, backwards of 1 s, messages of 0.25 s."""
    run = RunDir.create(storage, "piped", {}, resume=False)
    made = build("1f1b", 2, 4)
    spans = simulate(made, Costs(0.5, 1.0), send=0.25).spans
    run.append_event("run_started", run_id="piped", steps=2, cells=1, workers_per_cell=2, time=0.0)
    run.append_event("pipeline_step", step=1, cell=0, **picture(made, range(4), spans))


def test_a_runs_measured_times_plan_any_schedule(tmp_path: Path) -> None:
    journal(tmp_path)
    run = ("--pp", "2", "--run", "piped", "--storage", str(tmp_path))
    same = json.loads(call("1f1b", *run, "--microbatches", "4", "--json").stdout)
    assert same["makespan"] == pytest.approx(5 * 1.5)
    other = json.loads(call("zb1p", *run, "--microbatches", "8", "--json").stdout)
    assert other["idle"] == pytest.approx([0.5 + 1.0 - 2 * 0.5] * 2)
    drawn = tmp_path / "both.svg"
    assert call("1f1b", *run, "--microbatches", "4", "--draw", str(drawn)).exit_code == 0
    assert "Planned: 7.5 s, idle 20.0%" in drawn.read_text()
    late = simulate(build("1f1b", 2, 4), Costs(0.5, 1.0), send=0.25)
    assert f"Measured: {late.makespan:g} s, idle {late.idle_share:.1%}" in drawn.read_text()


def test_a_run_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    journal(tmp_path)
    empty = RunDir.create(tmp_path, "empty", {}, resume=False)
    empty.append_event("run_started", run_id="empty", steps=2, cells=1, workers_per_cell=2, time=0.0)
    for run, problem in (
        ("piped", "has 2 pipeline ranks, not 4"),
        ("empty", "no measured pipeline step"),
        ("lost", "no run"),
    ):
        refused = call(*DUALPIPE, "--run", run, "--storage", str(tmp_path)).exception
        assert isinstance(refused, UserError)
        assert problem in str(refused)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("dualpipe", "--pp", "4", "--microbatches", "9"), "8 or 10 micro-batches"),
        (("dualpipe", "--pp", "8", "--microbatches", "8"), "16 micro-batches, or pp 4"),
        (("gpipe", "--pp", "4", "--microbatches", "8"), "no schedule 'gpipe'"),
        ((*DUALPIPE, "--w", "2"), "--w: 2 is not less than the full backward, 2"),
        ((*DUALPIPE, "--f", "0"), "--f: 0 is no time"),
        ((*DUALPIPE, "--fb", "nan"), "--fb: nan is no time"),
        ((*DUALPIPE, "--draw", "picture.pdf"), "neither .svg nor .png"),
        ((*DUALPIPE, "--draw", "/nowhere/at/all.svg"), "cannot write /nowhere/at/all.svg"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(arguments: tuple[str, ...], problem: str) -> None:
    refused = call(*arguments).exception
    assert isinstance(refused, UserError)
    assert problem in str(refused)
