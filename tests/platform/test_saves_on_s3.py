"""Saves of a run on real processes to an S3 that hangs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import boto3
import pytest

from shoal_core.ckpt import among
from shoal_core.store import open_store
from tests.support.lab import hurry, lab
from tests.support.s3_server import account, s3_server


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
