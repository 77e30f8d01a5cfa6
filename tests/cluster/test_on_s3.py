"""A run whose storage is S3 outlives its cluster: all processes and local folders destroyed, it goes on elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import boto3
import pytest

from shoal.cluster import local
from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.place import followed, local_record
from shoal.testing import alone
from shoal.testing.outcome import assert_exactly_once
from shoal_core.ckpt import among
from shoal_core.store import join, open_store
from tests.support.jobs import WORKLOAD, submit, wait_for, write_job
from tests.support.s3_server import account, s3_server

pytestmark = [pytest.mark.cluster, pytest.mark.long]
CLUSTER = "test-s3"
STORAGE, STEPS = "s3://bucket/runs", 120


def test_everything_but_the_store_is_destroyed_half_way_and_the_run_is_resumed_on_another_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as url:
        account(monkeypatch, url, tmp_path)
        for name in ("STATE", "CACHE"):
            monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
        boto3.client("s3").create_bucket(Bucket="bucket")
        place = join(STORAGE, "far")
        file = write_job(tmp_path, run_id="far", storage=STORAGE, steps=STEPS, audit={"samples": True})
        local.up(CLUSTER, nodes=3, slots=2, mode="process")
        try:
            job = submit(CLUSTER, file)
            here = local_record(place)
            with followed(here, print, place):
                wait_for(here, 40)
            assert among.whole(open_store(join(place, layout.CHECKPOINTS)))
            for node in ("node1", "node2", "node3"):
                local.kill_node(CLUSTER, node)
        finally:
            local.down(CLUSTER)
        job.communicate(timeout=300)
        for name in ("STATE", "CACHE"):
            shutil.rmtree(tmp_path / name / "shoal" / "records", ignore_errors=True)
        (tmp_path / "hurry").touch()
        local.up(CLUSTER, nodes=2, slots=2, mode="process")
        try:
            output, _ = submit(CLUSTER, file, "--resume", "cells=1").communicate(timeout=900)
        finally:
            local.down(CLUSTER)
        path = local_record(place)
        assert (read_json(path / layout.RUN) or {}).get("status") == "done", output
        assert_exactly_once(path, STEPS)
        undisturbed = alone(WORKLOAD | {"seconds": 0.0}, STEPS)
        assert [line["loss"] for line in read.steps(path)] == pytest.approx(undisturbed.losses, rel=1e-5)
        assert (path / layout.REPORT).exists()
        started = [event for event in read.events(path) if event["kind"] == "run_started"]
        assert [event["cells"] for event in started] == [2, 1]
        assert started[1]["resumed_from"] >= 30
