"""Saves of a run on real processes to S3: by way of nodes' disks, and while it hangs."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

import boto3
import pytest

from shoal_core.ckpt import among
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.store import open_store
from tests.support.lab import alone, hurry, lab
from tests.support.s3_server import account, s3_server


def test_what_lies_on_a_nodes_disk_reaches_s3_and_is_gone_on_from_where_s3_is_damaged(
    tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account(monkeypatch, s3_endpoint, tmp_path)
    boto3.client("s3").create_bucket(Bucket="by-disk")
    storage, disks = f"s3://by-disk/ü %20#+ {secrets.token_hex(4)}", tmp_path / "disks"
    settings = {"cells": 1, "steps": 60, "storage": storage, "checkpoint": {"every": 20, "local": str(disks)}}
    with lab(tmp_path / "one", {"n0": 3}, **settings) as one:
        one.until(lambda: one.events("checkpoint"))
        store = open_store(f"{storage}/lab/checkpoints")
        newest = among.whole(store)[-1].folder
        parts = {name: size for name, size in newest.sizes().items() if name.endswith(".safetensors")}
        assert len(parts) == 2
        for name, size in parts.items():
            (near,) = disks.glob(f"lab/n0/{newest.name}/{name}")
            assert store.get(f"{newest.name}/{name}") == near.read_bytes()
            newest.put(name, bytes(size))
        one.kill(one.members(0)[0])
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"]) == ("done", 60), one.story()
        assert one.events("checkpoint_passed_over") == []
        assert one.events("checkpoint_failed") == []
        assert [line["loss"] for line in one.steps()] == pytest.approx(alone(60).losses, rel=1e-4)
    Checkpoint.open(among.whole(store)[-1].folder).verify()


@pytest.mark.long
def test_training_waits_for_no_store_that_hangs_and_what_was_due_is_saved_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as url:
        account(monkeypatch, url, tmp_path)
        boto3.client("s3").create_bucket(Bucket="bucket")
        settings = {"cells": 1, "steps": 400, "storage": "s3://bucket/runs", "checkpoint": {"every": 10, "keep": 50}}
        with lab(tmp_path / "one", {"n0": 2}, **settings) as one:
            one.until(lambda: one.events("checkpoint"))
            os.kill(url.pid, signal.SIGSTOP)
            try:
                before = len(one.steps())
                one.until(lambda: len(one.steps()) >= before + 40)
            finally:
                os.kill(url.pid, signal.SIGCONT)
            saved = len(one.events("checkpoint"))
            one.until(lambda: len(one.events("checkpoint")) > saved)
            hurry(one)
            run = one.finished()
            assert (run["status"], run["steps"], run["steps_lost"]) == ("done", 400, 0), one.story()
            assert one.events("checkpoint_failed") == [], "it took the store long, and that is all"
            steps = [event["step"] for event in one.events("checkpoint")]
        assert steps[-1] == 400
        assert [one.steps for one in among.whole(open_store("s3://bucket/runs/lab/checkpoints"))] == steps
