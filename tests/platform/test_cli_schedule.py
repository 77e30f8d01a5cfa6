"""`shoal schedule`: what it prints, draws and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from shoal.cli.schedule import schedule
from shoal.errors import UserError
from shoal.report.pipeline import Bar, pipeline_figure
from shoal.report.style import svg
from shoal_data.errors import InputError

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
    assert isinstance(refused, UserError | InputError)
    assert problem in str(refused)
