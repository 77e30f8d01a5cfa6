"""Options of `shoal plan`: none is left out without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.cli.options import COUNTS, NEEDS, WAYS, way_of
from shoal_core.errors import UserError

MODEL = ["plan", "--model", "laptop-10m", "--cluster", "1x8xH100", "--global-batch", "64", "--precision", "bf16"]


def test_every_option_has_a_row_and_a_panel() -> None:
    (plan,) = (one for name, one in get_command(app).commands.items() if name == "plan")  # type: ignore[attr-defined]
    options = {one.name: one for one in plan.params if one.name != "help"}
    assert set(options) == set(COUNTS)
    assert {way for ways in COUNTS.values() for way in ways.split()} == set(WAYS)
    assert {*NEEDS, *NEEDS.values()} <= set(COUNTS)
    panels = {name: one.rich_help_panel for name, one in options.items() if one.param_type_name == "option"}
    assert all(panels.values()), panels


@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_count_is_refused_by_its_name(way: str) -> None:
    base = {
        "model": ["model", "cluster"], "scaling": ["model", "scaling", "cluster"], "models": ["days", "cluster"],
        "job": ["job_file", "cluster"], "seats": ["job_file"], "validate": ["validate"],
        "calibrate": ["calibrate"], "learn": ["learn"],
    }[way]  # fmt: skip
    cluster = None if way in ("seats", "validate", "calibrate", "learn") else "8x8xH100"
    assert way_of(base, cluster) == way
    asks = {"job_file", "model", "scaling", "validate", "calibrate", "learn"}  # these ask for something else
    for name, ways in COUNTS.items():
        if way in ways.split() or name in asks:
            continue
        with pytest.raises(UserError) as error:
            way_of([*base, name], cluster)
        assert "--" + name.replace("_", "-") in error.value.problem or name == "overrides"
        assert error.value.remedy


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--rows", "3"], "--rows: not for --model; leave it out"),
        (["--seeds", "2"], "--seeds says nothing without --failures"),
        (["--rate", "0"], "--rate says nothing without --failures"),  # zero is a value
        (["--failures", "--spot-price", "1"], "--spot-price says nothing without --spot"),
        (["job.yaml"], "--model and a job both say"),
        (
            ["--picture", "plan.jpg"],
            "--picture: plan.jpg is neither .svg nor .png; end the picture's name in .svg or .png",
        ),
        (["--picture", "/nowhere/plan.svg"], "--picture: cannot write /nowhere/plan.svg: there is no folder /nowhere"),
    ],
)
def test_of_a_model(more: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.cli.estimate.searched", lambda *_: pytest.fail("it is said before anything is reckoned"))
    error = CliRunner().invoke(app, [*MODEL, *more]).exception
    assert isinstance(error, UserError)
    assert told in f"{error.problem}; {error.remedy}"


def test_of_a_job_the_layout_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("{}")
    error = CliRunner().invoke(app, ["plan", str(tmp_path / "job.yaml"), "--pp", "4", "--recompute", "ffn"]).exception
    assert "--pp, --recompute: not for a job" in str(error)
    assert "the job's file says that" in str(error)


def test_a_search_is_held_to_what_is_said_of_the_layout() -> None:
    asked = [*MODEL, "--json", "--pp", "2", "--schedule", "1f1b", "--recompute", "ffn", "--workers-per-cell", "4"]
    found = json.loads(CliRunner().invoke(app, asked).stdout)["layout"]
    assert (found["pp"], found["schedule"], found["recompute"], found["workers_per_cell"]) == (2, "1f1b", "ffn", 4)
    free = json.loads(CliRunner().invoke(app, [*MODEL, "--json"]).stdout)["layout"]
    assert free != found
