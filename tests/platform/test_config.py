"""Job files and overrides: what is wrong is named, with the nearest key that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shoal.config import Job, load_job, merge_overrides, parse
from shoal.errors import UserError
from shoal.submit import preflight

MINIMAL = {"steps": 10, "workload": {"path": "shoal_workloads.synthetic:Synthetic"}}


def test_overrides_reach_into_sections_and_are_read_as_yaml() -> None:
    merged = merge_overrides(MINIMAL, ["steps=20", "checkpoint.every=5", "workload.lr=1e-3", "audit.samples=true"])
    assert merged["steps"] == 20
    assert merged["workload"] == {"path": "shoal_workloads.synthetic:Synthetic", "lr": 0.001}
    job = parse(Job, merged, source="test")
    assert job.checkpoint.every == 5
    assert job.audit.samples is True
    assert MINIMAL["steps"] == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stpes=3", "unknown key 'stpes', did you mean 'steps'"),
        ("checkpoint.evry=3", "unknown key 'checkpoint.evry', did you mean 'checkpoint.every'"),
        ("cells=0", "'cells': Input should be greater than or equal to 1"),
        ("run_id=a/b", "'run_id'"),
        ("steps", "'steps' is no override"),
        ("steps.x=1", "'steps' is a value, not a section"),
    ],
)
def test_a_bad_setting_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(Job, merge_overrides(MINIMAL, [override]), source="job.yaml")


def test_the_workloads_own_keys_are_checked_too(tmp_path: Path) -> None:
    job = parse(Job, merge_overrides(MINIMAL, [f"storage={tmp_path}", "workload.secnds=1"]), source="job.yaml")
    with pytest.raises(UserError, match=r"unknown key 'workload.secnds', did you mean 'workload.seconds'"):
        preflight(job, resume=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [("steps: [", "is not YAML"), ("just words", "holds no settings"), ("cells: 2", "'steps' is missing")],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_job(file, [])
    assert str(file) in error.value.problem


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        load_job(tmp_path / "nowhere.yaml", [])


def test_preflight_refuses_a_batch_that_does_not_divide_and_an_id_in_use(tmp_path: Path) -> None:
    settings = merge_overrides(MINIMAL, [f"storage={tmp_path}", "workload.global_batch=5", "run_id=one"])
    with pytest.raises(UserError, match="a global batch of 5 samples"):
        preflight(parse(Job, settings, source="job.yaml"), resume=False)
    (tmp_path / "one").mkdir()
    settings = merge_overrides(settings, ["workload.global_batch=4"])
    with pytest.raises(UserError, match="'one' is in use"):
        preflight(parse(Job, settings, source="job.yaml"), resume=False)
