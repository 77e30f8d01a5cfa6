"""Ray Train's configs in a job's words: every field is taken or refused by name; and what a run's end becomes."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import ray.train
from ray.train import Checkpoint
from ray.train.v2._internal.state import schema
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.train.v2.api.result import Result

from shoal.record import raytrain
from shoal.record.rundir import RunDir
from shoal.storage import arrow_filesystem
from shoal.train import RunStopped, ShoalTrainer, mapping, outcome, read_result
from shoal.train.launch import Ended
from shoal_core.ckpt.retention import Keep
from shoal_core.errors import UserError
from shoal_core.store import open_store

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray's own
LOCAL, S3 = pyarrow.fs.LocalFileSystem(), pyarrow.fs.S3FileSystem
SYNTHETIC = "shoal_workloads.synthetic:Synthetic"
Words = dict[str, Any]


def trainer(tmp_path: Path, own: Words | None = None, scaling: Words | None = None, **run: Any) -> ShoalTrainer:
    run = {"name": "a", "storage_path": str(tmp_path)} | run
    return ShoalTrainer(
        SYNTHETIC,
        workload_config={"lr": 0.1},
        shoal_config={"steps": 5} | (own or {}),
        scaling_config=ScalingConfig(**(scaling or {})),
        run_config=RunConfig(**run),
    )


@pytest.mark.parametrize(
    ("config", "rules"),
    [
        (ScalingConfig, mapping.SCALING),
        (RunConfig, mapping.RUN),
        (FailureConfig, mapping.FAILURE),
        (CheckpointConfig, mapping.CHECKPOINT),
        (LoggingConfig, mapping.LOGGING),
    ],
)
def test_every_field_of_the_installed_ray_has_a_rule_and_no_other(config: type, rules: dict[str, Any]) -> None:
    assert getattr(ray.train, config.__name__) is config
    assert is_dataclass(config)
    assert {field.name for field in fields(config)} == set(rules)


def test_the_page_names_every_field_and_every_public_attribute() -> None:
    page = (Path(__file__).parents[2] / "docs/ray-train.md").read_text()
    configs = (ScalingConfig, RunConfig, FailureConfig, CheckpointConfig, LoggingConfig)
    names = {field.name for config in (*configs, Result) for field in fields(config)}
    names |= {*dir(Result), *dir(Checkpoint), *vars(Checkpoint("/tmp")), *dir(UserCallback)}
    missing = [name for name in names if not name.startswith("_") and not re.search(rf"[`.]{name}[`(]", page)]
    assert not missing


@pytest.mark.parametrize(
    ("title", "kinds"),
    [
        ("TrainRun", (schema.TrainRun, schema.DecoratedTrainRun)),
        ("TrainRunAttempt", (schema.TrainRunAttempt, schema.DecoratedTrainRunAttempt)),
        ("TrainWorker", (schema.TrainWorker, schema.DecoratedTrainWorker)),
    ],
)
def test_the_page_has_a_table_of_every_field_of_the_state(title: str, kinds: tuple[Any, ...]) -> None:
    page = (Path(__file__).parents[2] / "docs/ray-train.md").read_text()
    table = page.partition(f"| `{title}` | |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert named == {name for kind in kinds for name in kind.model_fields}


def test_every_status_of_a_run_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs/ray-train.md").read_text()
    assert [status.value for status in schema.RunStatus if f"`{status.value}`" not in page] == []


def test_a_field_that_a_later_ray_adds_is_refused_by_name() -> None:
    rules = {name: rule for name, rule in mapping.LOGGING.items() if name != "log_level"}
    with pytest.raises(UserError, match=r"LoggingConfig\.log_level='INFO': this version of Shoal does not know it"):
        mapping.settings(LoggingConfig(), rules, {})


def test_what_ray_says_where_nothing_is_said(tmp_path: Path) -> None:
    job = trainer(tmp_path).job
    assert (job.run_id, job.storage, job.steps) == ("a", str(tmp_path), 5)
    assert (job.cells, job.workers_per_cell, job.slot_resource, job.spares, job.elastic) == (1, 1, "CPU", 0, None)
    assert (job.failures.most, job.failures.preemptions) == (0, None)
    assert (job.checkpoint.keep, job.checkpoint.keep_best) == ("all", 0)
    assert job.workload == {"path": SYNTHETIC, "lr": 0.1}


def test_workers_become_cells_and_a_range_of_them_bounds_the_shapes(tmp_path: Path) -> None:
    job = trainer(tmp_path, {"workers_per_cell": 2}, {"num_workers": 8, "use_gpu": True}).job
    assert (job.cells, job.workers_per_cell, job.slot_resource, job.elastic) == (4, 2, "GPU", None)
    scaling = {"num_workers": (2, 8), "elastic_resize_monitor_interval_s": 5.0, "resources_per_worker": {"slot": 1}}
    job = trainer(tmp_path, {"workers_per_cell": 4, "elastic": {"ep": [1]}}, scaling).job
    assert (job.cells, job.workers_per_cell, job.slot_resource) == (2, 4, "slot")
    assert job.elastic is not None
    assert (job.elastic.min_workers, job.elastic.hold_s, job.elastic.ep) == (2, 5.0, [1])


def test_how_often_a_run_goes_back_and_which_checkpoints_stay(tmp_path: Path) -> None:
    failing = FailureConfig(max_failures=-1, max_preemption_failures=4, preemption_grace_s=3.0)
    best = CheckpointConfig(num_to_keep=3, checkpoint_score_attribute="loss", checkpoint_score_order="min")
    job = trainer(tmp_path, failure_config=failing, checkpoint_config=best).job
    assert (job.failures.most, job.failures.preemptions) == (None, 4)
    assert job.checkpoint.stays == Keep(1, 0, 3, "loss", most=False)
    job = trainer(tmp_path, {"checkpoint": {"every": 7}}, checkpoint_config=CheckpointConfig(num_to_keep=3)).job
    assert (job.checkpoint.keep, job.checkpoint.keep_best, job.checkpoint.every) == (3, 0, 7)
    job = trainer(tmp_path, checkpoint_config=CheckpointConfig(checkpoint_score_attribute="loss")).job
    assert (job.checkpoint.keep, job.checkpoint.score_order) == ("all", "max")


def test_where_workers_stand_and_what_they_take(tmp_path: Path) -> None:
    job = trainer(tmp_path, None, {"num_workers": 2, "label_selector": [{"zone": "!a"}] * 2}).job
    assert (job.slot_labels, job.slot_needs) == ({"zone": "!a"}, {})
    wants: Words = {"resources_per_worker": {"CPU": 8, "memory": 1e9}, "use_gpu": True, "accelerator_type": "H100"}
    job = trainer(tmp_path, None, wants).job
    assert (job.slot_resource, job.threads) == ("GPU", 8)
    assert job.slot_needs == {"CPU": 8, "memory": 1e9, "accelerator_type:H100": 0.001}
    job = trainer(tmp_path, {"threads": 1}, {"resources_per_worker": {"CPU": 2}}).job
    assert (job.slot_resource, job.slot_needs, job.threads) == ("CPU", {"CPU": 2}, 1)
    job = trainer(tmp_path, None, {"resources_per_worker": {"slot": 1, "CPU": 0.5}}).job
    assert (job.slot_resource, job.slot_needs, job.threads) == ("slot", {"CPU": 0.5}, 1)
    env = {"env_vars": {"A": "b"}, "working_dir": "s3://b/code.zip"}
    job = trainer(tmp_path, worker_runtime_env=env, logging_config=LoggingConfig(log_level="debug")).job
    assert (job.worker_runtime_env, job.log) == (env, "debug")


def test_a_filesystem_becomes_the_address_that_every_worker_opens(tmp_path: Path) -> None:
    def at(files: Any, path: str) -> str:
        return trainer(tmp_path, storage_filesystem=files, storage_path=path).job.storage

    assert at(LOCAL, str(tmp_path)) == str(tmp_path)
    assert at(pyarrow.fs.SubTreeFileSystem(str(tmp_path), LOCAL), "runs/mine") == str(tmp_path / "runs/mine")
    files = S3(endpoint_override="h:9000", scheme="http", region="eu")
    found = at(files, "bucket/runs")
    assert arrow_filesystem(found) == (files, "bucket/runs")
    assert arrow_filesystem(at(S3(region="eu"), "bucket/runs")) == (S3(region="eu"), "bucket/runs")


@pytest.mark.parametrize(
    ("own", "scaling", "run", "names"),
    [
        ({}, {"num_workers": 0}, {}, "ScalingConfig.num_workers=0"),
        ({"workers_per_cell": 2}, {"num_workers": 3}, {}, "ScalingConfig.num_workers=3"),
        ({}, {"placement_strategy": "SPREAD"}, {}, "ScalingConfig.placement_strategy='SPREAD'"),
        ({}, {"label_selector": [{"zone": "a"}, {"zone": "b"}], "num_workers": 2}, {}, "ScalingConfig.label_selector"),
        ({}, {"label_selector": {"zone": "(a"}}, {}, "'slot_labels'"),
        ({}, {"use_tpu": True}, {}, "ScalingConfig.use_tpu"),
        ({}, {"resources_per_worker": {"GPU": 2}, "use_gpu": True}, {}, "ScalingConfig.resources_per_worker"),
        ({}, {"resources_per_worker": {"memory": 1e9}}, {}, "ScalingConfig.resources_per_worker"),
        ({}, {}, {"storage_filesystem": pyarrow.fs._MockFileSystem()}, "RunConfig.storage_filesystem"),
        ({}, {}, {"storage_filesystem": LOCAL, "storage_path": "runs"}, "RunConfig.storage_filesystem"),
        ({}, {}, {"storage_filesystem": LOCAL, "storage_path": "s3://b/runs"}, "RunConfig.storage_filesystem"),
        ({}, {}, {"storage_filesystem": S3(access_key="a", secret_key="b")}, "RunConfig.storage_filesystem"),
        ({}, {}, {"worker_runtime_env": {"working_dir": "."}}, "'worker_runtime_env'"),
        ({}, {}, {"worker_runtime_env": {"py_modules": ["s3://b/x.zip", "/x"]}}, "'worker_runtime_env'"),
        ({}, {}, {"worker_runtime_env": {"pip": object}}, "'worker_runtime_env'"),
        ({}, {}, {"worker_runtime_env": {"env_vars": {"OMP_NUM_THREADS": 4}}}, "env_vars.OMP_NUM_THREADS: is int, no"),
        ({}, {}, {"worker_runtime_env": {"pip": "needs.txt"}}, "pip: needs.txt is a file, which other nodes may not"),
        ({}, {}, {"logging_config": LoggingConfig(log_level="CRITICAL")}, "LoggingConfig.log_level='CRITICAL'"),
        ({}, {}, {"failure_config": FailureConfig(controller_failure_limit=2)}, "controller_failure_limit=2"),
        ({"run_id": "b"}, {}, {}, "run_id: a config of Ray Train's says it"),
        ({"checkpoint": {"keep": 2}}, {}, {}, "checkpoint.keep: a config of Ray Train's says it"),
        ({"cell": 2}, {}, {}, "unknown key 'cell'"),
        ({"steps": None}, {}, {}, "'steps'"),
        ({}, {}, {"name": "a/b"}, "'run_id'"),
    ],
)
def test_what_shoal_does_not_do_is_refused_by_name_with_the_remedy(
    tmp_path: Path, own: Words, scaling: Words, run: Words, names: str
) -> None:
    with pytest.raises(UserError) as refused:
        trainer(tmp_path, own, scaling, **run)
    assert names in refused.value.problem
    assert refused.value.remedy


class Nested:
    class Workload:
        pass


def test_a_workload_is_named_by_its_path_or_given_as_a_class_that_workers_import(tmp_path: Path) -> None:
    from shoal_workloads.synthetic import Synthetic

    given = ShoalTrainer(Synthetic, shoal_config={"steps": 1}, run_config=RunConfig(storage_path=str(tmp_path)))
    assert given.job.workload["path"] == SYNTHETIC
    with pytest.raises(UserError, match="is no config of Ray's"):
        ShoalTrainer(Synthetic, scaling_config={"num_workers": 2})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no worker can import"):
        ShoalTrainer(Nested.Workload, shoal_config={"steps": 1})


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A run of two steps without an end."""
    config = trainer(tmp_path).job.model_dump(mode="json")
    run = RunDir.create(tmp_path, "a", config, resume=False)
    run.append_event("run_started")
    run.append_event("generation", generation=0, live=1, cells={"0": ["a/x@n", "a/y@n"]}, attempts={"0": 0})
    line = {"tokens": 8, "samples": [0, 8], "cells": 1, "generation": 0, "seconds": 1.0, "stats": [1.0], "norm_sq": 0.5}
    for step in range(2):
        run.append_step({"step": step, "loss": 3.0 - step, **line})
    run.append_event("evaluation", step=2, bpb=1.5)
    run.close()
    raytrain.refresh(open_store(tmp_path / "a"), Keep())
    return tmp_path / "a"


def test_a_result_has_every_step_and_says_how_the_run_ended(record: Path) -> None:
    found = read_result(str(record))
    assert isinstance(found, Result)
    assert found.metrics_dataframe is not None
    assert list(found.metrics_dataframe["loss"]) == [3.0, 2.0]
    assert found.metrics is not None
    assert (found.metrics["step"], found.metrics["bpb"], "stats" in found.metrics) == (1, 1.5, False)
    assert (found.error, found.checkpoint, found.path) == (None, None, str(record))
    run = RunDir(record)
    run.append_event("run_ended", status="stopped", reason="by hand")
    run.close()
    assert isinstance(read_result(str(record)).error, RunStopped)
    with pytest.raises(UserError, match="there is no run"):
        read_result(str(record.parent / "b"))


def test_errors_are_rays_with_each_workers_own_by_its_rank(record: Path) -> None:
    assert isinstance(outcome.failure("left", "its controller does not answer", record), ControllerError)
    died = outcome.failure("failed", "the controller died (killed); go on", record)
    assert isinstance(died, ControllerError)
    assert isinstance(outcome.failure("failed", "20 attempts in a row committed no step", record), WorkerGroupError)
    run = RunDir(record)
    run.append_event("error", actor="a/y@n", step=2, trace="ValueError: bad")
    run.close()
    raised = outcome.failure("failed", "a/y@n: bad", record)
    assert isinstance(raised, WorkerGroupError)
    assert {rank: str(error) for rank, error in raised.worker_failures.items()} == {1: "ValueError: bad"}


def test_who_told_this_process_to_end_a_run_gets_what_python_raises_for_it(tmp_path: Path) -> None:
    job = trainer(tmp_path).job
    with pytest.raises(KeyboardInterrupt):
        outcome.result_of(Ended(job, "stopped", "stopped by SIGINT", 2))
    with pytest.raises(SystemExit) as ended:
        outcome.result_of(Ended(job, "stopped", "stopped by SIGTERM", 15))
    assert ended.value.code == 143


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"env_var": {"A": "b"}}, "Ray has no field 'env_var', did you mean 'env_vars'"),
        ({"pip": ["x"], "uv": ["y"]}, "Ray refuses it .*cannot be specified at the same time"),
        ({"pip": {"package": ["x"]}}, "Ray refuses it"),
        ({"working_dir": "ftp://x/y.zip"}, "Ray refuses it"),
    ],
)
def test_a_runtime_environment_that_ray_would_refuse_is_refused_before_the_run(
    tmp_path: Path, env: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError, match=rf"worker_runtime_env: {why}"):
        trainer(tmp_path, worker_runtime_env=env).check()


def test_a_run_is_restored_with_the_settings_on_its_record_unless_a_secret_is_missing(record: Path) -> None:
    job = ShoalTrainer.restore(str(record)).job
    assert job == trainer(record.parent).job
    with pytest.raises(UserError, match="there is no run"):
        ShoalTrainer.restore(str(record.parent / "b"))
    config = record / "config.yaml"
    config.write_text(config.read_text().replace("uri: null", "uri: http://***@host"))
    with pytest.raises(UserError, match=r"the record does not hold mlflow\.uri"):
        ShoalTrainer.restore(str(record))


def test_the_controller_of_a_run_that_has_just_ended_is_waited_for_and_no_other(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.on_ray import submit

    job = trainer(record.parent).job
    there = [True, True, False]
    monkeypatch.setattr(submit, "find_actor", lambda name: there.pop(0) or None)
    assert submit.held("a/controller", job)  # its record has no end
    RunDir(record).write_run({"status": "stopped"})
    assert not submit.held("a/controller", job)
    assert there == []


def test_to_import_shoal_train_brings_neither_ray_nor_torch() -> None:
    code = "import sys, shoal.train; from shoal.train import ShoalTrainer; print({'ray', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workload_config": 3}, "workload_config: 3 is no dict"),
        ({"shoal_config": [1]}, r"shoal_config: \[1\] is no dict"),
        ({"workload_config": {"path": "x:Y"}}, "path is said by the first argument"),
    ],
)
def test_settings_that_are_none_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ShoalTrainer("shoal_workloads.synthetic:Synthetic", **{"shoal_config": {"steps": 1}, **given})


def test_a_folder_of_runs_is_none(record: Path) -> None:
    with pytest.raises(UserError, match="there is no run"):
        ShoalTrainer.restore(str(record.parent))
