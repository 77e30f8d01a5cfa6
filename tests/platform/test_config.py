"""Job files and overrides: what is wrong is named, with the nearest key that exists."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from shoal.config import Job, load_job, merge_overrides, parse
from shoal.preflight import preflight
from shoal_core.errors import UserError
from shoal_core.loading import load_workload

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
        ("=5", "'=5' is no override"),
        ("cells=1000000000", "(allowed: at least 1, at most 100,000)"),
        ("patience=1e-9", "(allowed: at least 0.1, at most 86,400.0)"),
        ("patience=.nan", "'patience'"),
        ("steps=.inf", "'steps': Input should be a finite number"),
        ("spares=-5", "'spares': Input should be greater than or equal to 0"),
        ("seed=-1", "'seed'"),
        ("workload.lr=.inf", "'workload.lr': must be a finite number"),
        ("workload.deep=[{a: .nan}]", "'workload.deep.0.a': must be a finite number"),
        ("storage=''", "'storage': is empty"),
        ('storage="a\\nb"', "'storage'"),
        ("slot_resource=memory", "Ray hands out memory by itself"),
        ("slot_resource='a b'", "'slot_resource'"),
        ("run_id=mlflow.db", "MLflow's own files"),
        ("workload.x={a: 1, a: 2}", "'a' stands in line 1 already"),
        ("workload.x={a: [}", "the value of 'workload.x': line 1, column 6: is not YAML"),
        ("workload.when=2024-99-99", "holds a value that cannot be read"),
        ("inject=&a [*a]", "stands for more than"),
        ("inject=[{att: vote, step: 1}]", "unknown key 'inject.0.att', did you mean 'inject.0.at'"),
        ("elastic.hold=3", "unknown key 'elastic.hold', did you mean 'elastic.hold_s'"),
        ("elastic.cells=[4,2]", "'elastic.cells': the fewest, 4, are more than the most, 2"),
        ("elastic.ep=[]", "'elastic.ep': List should have at least 1 item"),
        ("elastic.min_workers=0", "'elastic.min_workers': Input should be greater than or equal to 1 (allowed"),
    ],
)
def test_a_bad_setting_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(Job, merge_overrides(MINIMAL, [override]), source="job.yaml")


def test_the_workloads_own_keys_are_checked_too(tmp_path: Path) -> None:
    job = parse(Job, merge_overrides(MINIMAL, [f"storage={tmp_path}", "workload.secnds=1"]), source="job.yaml")
    with pytest.raises(UserError, match=r"unknown key 'workload.secnds', did you mean 'workload.seconds'"):
        preflight(job, resume=False)


def test_gradients_that_are_reduced_once_are_refused_in_exact_runs(tmp_path: Path) -> None:
    """Which take micro-batches one by one: the setting would do nothing."""
    workload = {
        "path": "shoal_workloads.pretrain:Pretrain",
        "model": {"preset": "demo"},
        "data": {"corpus": str(tmp_path / "none")},
        "batch": {"global_batch": 8},
        "parallel": {"reduce_once": True},
    }
    settings = {"steps": 1, "storage": tmp_path, "workload": workload, "mlflow": {"enabled": False}}
    with pytest.raises(UserError, match="reduce: exact rounds the gradients of each micro-batch") as refused:
        preflight(parse(Job, {**settings, "reduce": "exact"}, source="job.yaml"), resume=False)
    assert "workload.parallel.reduce_once=false" in refused.value.remedy
    own = {"path": "tests.support.torchmodels:Language", "global_batch": 8, "reduce_once": True}
    with pytest.raises(UserError, match="reduce: exact rounds the gradients of each micro-batch"):
        preflight(parse(Job, {**settings, "workload": own, "reduce": "exact"}, source="job.yaml"), resume=False)


def test_what_is_wrong_with_several_fields_together_is_told_by_their_names(tmp_path: Path) -> None:
    workload = {"path": "tests.support.torchmodels:Language", "global_batch": 3, "micro_batch": 2}
    settings = {"steps": 1, "storage": tmp_path, "workload": workload, "mlflow": {"enabled": False}}
    with pytest.raises(UserError) as refused:
        preflight(parse(Job, settings, source=""), resume=False)
    told = "the job file, or workload_config: workload.micro_batch: 2 does not divide global_batch 3"
    assert refused.value.problem == told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [", "is not YAML"),
        ("just words", "holds no settings"),
        ("cells: 2", "'steps' is missing"),
        ("steps: 1\nworkload: {}\nsteps: 2", "line 3, column 1: 'steps' stands in line 1 already"),
        ("workload:\n  a: 1\n  b: 2\n  a: 3", "line 4, column 3: 'a' stands in line 2 already"),
        ("steps: !!python/object/apply:os.system ['true']", "is not YAML: could not determine a constructor"),
        ("x: " + "[" * 3000, "is nested too deeply"),
        ("x: '" + "a" * 1_000_001 + "'", "is longer than 1,000,000 characters"),
        ("steps: 1\x00", "is none that YAML knows"),
    ],
    ids=range(9),
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_job(file, [])
    assert str(file) in error.value.problem


def test_aliases_that_stay_small_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("workload: &w {path: 'a:B', lr: 0.1}\nsteps: 3\ninject: []\n")
    assert load_job(file, []).workload["lr"] == 0.1
    bomb = "\n".join(f"{name}: &{name} [{','.join(['*' + before] * 10)}]" for before, name in pairwise("abcdefgh"))
    file.write_text(f"a: &a [1]\n{bomb}\nsteps: 3")
    with pytest.raises(UserError, match="stands for more than"):
        load_job(file, [])


def test_errors_repeat_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("steps: 3\nmlflow: {uri: postgresql://u:HUNTER2@h/db\n")
    with pytest.raises(UserError) as broken:
        load_job(file, [])
    with pytest.raises(UserError) as no_override:
        merge_overrides(MINIMAL, ["mlflow.uri postgresql://u:HUNTER2@h/db"])
    with pytest.raises(UserError) as bad_value:
        parse(Job, merge_overrides(MINIMAL, ["mlflow.enabled=HUNTER2", "mlflow.experiment=[HUNTER2]"]), source="x")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8"):
        load_job(file, [])
    for error in (broken, no_override, bad_value):
        assert "HUNTER2" not in str(error.value)


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


@pytest.mark.parametrize(
    "path",
    [5, [1], "", "../x:Y", "a..b:C", "os:system", "json", "shoal_workloads.synthetic:SyntheticConfig", "no.such:X"],
)
def test_a_path_that_is_no_workload_is_named(path: object) -> None:
    with pytest.raises(UserError, match=r"workload\.path"):
        load_workload(path)
