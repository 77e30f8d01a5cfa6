"""Ray Train's own classes open the folder of a run: the list of its checkpoints has their form."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import boto3
import pytest
import ray
from ray.train import Result
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from shoal.record import layout, raytrain
from shoal.storage import arrow_filesystem
from shoal_core.ckpt import alone, among
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.retention import Keep, Saved
from shoal_core.store import join, open_store
from tests.support.lab import hurry, lab
from tests.support.s3_server import account, s3_server

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray's own
LOSSES = {10: 3.0, 20: 1.0, 30: 2.0}


def test_the_list_has_the_form_that_this_ray_reads_no_field_more_or_less() -> None:
    saved = [Saved(steps, metrics={"loss": loss}) for steps, loss in LOSSES.items()]
    told = raytrain.snapshot(saved, Keep(1, best=2, score="loss"), ray.__version__)
    read = _CheckpointManagerState.model_validate(told)
    assert json.loads(read.model_dump_json()) == told
    assert set(told) == set(_CheckpointManagerState.model_fields)
    assert layout.RAY_TRAIN == CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    names = [one["checkpoint_dir_name"] for one in told["checkpoint_results"]]
    assert names == [f"checkpoints/{name_of(steps)}" for steps in (10, 30, 20)]  # the best last
    assert told["checkpoint_report_indices"] == [0, 2, 1]
    assert told["latest_checkpoint_result"]["metrics"] == {"step": 29, "loss": 2.0}


def write(run: Path | str, steps: int, **about: Any) -> None:
    alone.write(Folder(open_store(join(run, layout.CHECKPOINTS)), name_of(steps)), {}, {"steps": steps, **about})


def test_ray_opens_a_run_without_and_with_checkpoints_and_after_one_was_removed_by_hand(tmp_path: Path) -> None:
    run = tmp_path / "a"
    (run / layout.CHECKPOINTS).mkdir(parents=True)
    store = open_store(run)
    raytrain.strike(store, name_of(10))  # no list, nothing to do
    raytrain.refresh(store, Keep())
    assert Result.from_path(str(run)).best_checkpoints == []
    for steps, loss in LOSSES.items():
        write(run, steps, metrics={"loss": loss}, bpb=None)
    raytrain.refresh(store, Keep())
    found = Result.from_path(str(run))
    assert found.best_checkpoints is not None
    assert [metrics for _, metrics in found.best_checkpoints] == [
        {"step": steps - 1, "loss": loss} for steps, loss in LOSSES.items()
    ]
    best = found.get_best_checkpoint("loss", "min")
    assert best is not None
    with best.as_directory() as folder:
        assert folder == str(run / layout.CHECKPOINTS / name_of(20))
        assert "COMMITTED.json" in os.listdir(folder)
    raytrain.strike(store, name_of(30))
    among.delete(Folder(open_store(run / layout.CHECKPOINTS), name_of(30)))
    found = Result.from_path(str(run))
    assert found.metrics == {"step": 19, "loss": 1.0}


def test_ray_opens_a_run_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as url:
        account(monkeypatch, url, tmp_path)
        boto3.client("s3").create_bucket(Bucket="bucket")
        run = f"s3://bucket/runs/a?scheme=http&endpoint_override={url.removeprefix('http://')}"
        write(run, 10, metrics={"loss": 1.0}, bpb=2.0)
        raytrain.refresh(open_store(run), Keep())
        found = Result.from_path(run)
        assert found.metrics == {"step": 9, "loss": 1.0, "bpb": 2.0}
        assert found.checkpoint is not None
        assert found.checkpoint.path == f"bucket/runs/a/checkpoints/{name_of(10)}"
        with found.checkpoint.as_directory() as folder:
            assert "COMMITTED.json" in os.listdir(folder)
        odd = "s3://bucket/my runs/é+%20#1/a"  # taken as it is written, at the endpoint that AWS's tools take
        write(odd, 20, metrics={"loss": 2.0}, bpb=None)
        raytrain.refresh(open_store(odd), Keep())
        files, where = arrow_filesystem(odd)
        assert Result.from_path(where, storage_filesystem=files).metrics == {"step": 19, "loss": 2.0}


def test_a_list_that_somebody_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / layout.RAY_TRAIN).write_text('{"checkpoint_results": 3}')
    with pytest.raises(ValueError, match=layout.RAY_TRAIN):
        raytrain.strike(open_store(tmp_path), name_of(10))


def test_a_run_keeps_its_list_as_checkpoints_come_and_go(tmp_path: Path) -> None:
    keeping = {"every": 5, "keep": 1, "keep_best": 2, "score": "loss", "score_order": "max"}
    with lab(tmp_path, {"n0": 2}, steps=20, cells=1, checkpoint=keeping) as one:
        hurry(one)
        run = one.finished()
        assert run["status"] == "done", one.story()
        found = Result.from_path(str(one.path))
        there = {
            str(entry) for entry in (one.path / layout.CHECKPOINTS).iterdir() if (entry / "COMMITTED.json").exists()
        }
        assert found.best_checkpoints is not None
        assert {checkpoint.path for checkpoint, _ in found.best_checkpoints} == there
        losses = {line["step"]: line["loss"] for line in one.steps()}
        for _, metrics in found.best_checkpoints:
            assert metrics["loss"] == losses[metrics["step"]]
        assert found.metrics is not None
        assert found.metrics["step"] == 19
