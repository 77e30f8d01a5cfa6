"""Runs whose records lie on S3, without anybody who trains."""

from __future__ import annotations

import secrets
from pathlib import Path

import boto3
import pytest

from shoal.record.grip import take
from shoal.record.publish import Publisher
from shoal.record.rundir import RunDir
from shoal_core.store import join, open_store
from tests.support.s3_server import account

__all__ = ["empty_storage", "publish"]


@pytest.fixture
def empty_storage(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty one, with letters in it that addresses may have."""
    account(monkeypatch, s3_endpoint, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    boto3.client("s3").create_bucket(Bucket="runs")
    return f"s3://runs/{secrets.token_hex(4)}/ä b%20#+"


def publish(storage: str, name: str, folder: Path) -> None:
    """Put the record of the run `name` there, which its controller writes in `folder`."""
    run = RunDir.create(folder, name, {}, resume=False)
    run.append_event("run_started", run_id=name, steps=9)
    run.write_status({"run_id": name, "status": "running", "step": 3, "steps": 9, "loss": 1.5, "workers": []})
    publisher = Publisher(run.path, take(open_store(join(storage, name)), "session"))
    publisher.round()
    publisher.release()
