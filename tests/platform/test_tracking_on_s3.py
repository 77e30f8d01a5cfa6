"""Artifacts of runs whose storage is a bucket lie there; the database is one for all runs of the storage."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pytest

from shoal import tracking
from shoal.record.place import own_folder, sign
from tests.support.mirrored import a_run
from tests.support.s3_server import account

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def test_artifacts_go_into_the_bucket_of_the_runs(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.tracking.mirror import Mirror

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "")
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
    run = a_run(tmp_path, 2)
    (run.path / "report.html").write_text("<p>")
    run.append_event("run_ended", status="done")
    account(monkeypatch, "http://127.0.0.1:9", tmp_path)  # the address has its own
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="runs")
    storage = f"s3://runs/100% of #1/é?endpoint_override={s3_endpoint.removeprefix('http://')}&scheme=http"
    place, _, options = storage.partition("?")
    sign(run.path, f"{place}/{run.path.name}?{options}")
    database = own_folder(storage) / "mlflow.db"
    assert tracking.default_uri(run.path) == f"sqlite:///{database}"
    mirror = Mirror(run.path, tracking.default_uri(run.path), "shoal")
    mirror.sync()
    mirror.close()
    listed = boto3.client("s3", endpoint_url=s3_endpoint).list_objects_v2(Bucket="runs")["Contents"]
    assert database.exists()
    (key,) = [found["Key"] for found in listed if found["Key"].endswith("/artifacts/report.html")]
    assert key.startswith("100% of %231/é/mlartifacts/")
