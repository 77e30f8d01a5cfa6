"""A run whose storage is S3, on real processes: nothing of it needs a folder that machines share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.record import layout, read
from shoal.record.jsonl import read_json
from shoal.record.place import address_of, local_record
from shoal.testing.outcome import assert_exactly_once
from shoal_core.ckpt import among
from shoal_core.store import open_store
from tests.support.lab import Lab, alone, hurry, lab
from tests.support.s3_server import Url, account, s3_server

NODES = {f"n{i}": 2 for i in range(3)}
STORAGE = "s3://bucket/my runs/é+%20#1"
PLACE = f"{STORAGE}/lab"
SMALL: dict[str, Any] = {"cells": 2, "audit": {"samples": True}, "storage": STORAGE}


@pytest.fixture(scope="module")
def server() -> Iterator[Url]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Url]:
    """An empty one; readers keep what they bring in `tmp_path`."""
    account(monkeypatch, server, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield server
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
        for found in page.get("Contents", ()):
            client.delete_object(Bucket="bucket", Key=found["Key"])
    client.delete_bucket(Bucket="bucket")


def published(one: Lab, steps: int) -> Path:
    """The record of a run that is done, as any other machine reads it: whole, and each loss the undisturbed run's."""
    run = one.finished()
    assert (run["status"], run["steps"], run["steps_lost"]) == ("done", steps, 0), one.story()
    one.controller.join()
    path = local_record(PLACE)
    assert (read_json(path / layout.RUN) or {})["status"] == "done"
    assert_exactly_once(path, steps)
    assert [line["loss"] for line in read.steps(path)] == pytest.approx(alone(steps).losses, rel=1e-4)
    return path


def test_a_run_lies_on_s3_from_its_start_to_its_report_and_is_resumed_on_another_machine(
    bucket: Url, tmp_path: Path
) -> None:
    with lab(tmp_path / "one", NODES, steps=30, checkpoint={"every": 10, "keep": 2}, **SMALL) as one:
        hurry(one)
        path = published(one, 30)
    assert "<html" in (path / layout.REPORT).read_text()
    assert address_of(path) == PLACE
    assert among.whole(open_store(f"{PLACE}/checkpoints"))[-1].steps == 30
    said = CliRunner().invoke(app, ["status", "lab", "--storage", STORAGE, "--json"])
    assert said.exit_code == 0, said.output
    assert '"status": "done"' in said.output
    assert "30 of 30" in CliRunner().invoke(app, ["runs", "--storage", STORAGE]).output
    with lab(tmp_path / "two", NODES, steps=40, resume=True, checkpoint={"every": 10}, **SMALL) as one:
        hurry(one)
        published(one, 40)
        assert [event["resumed_from"] for event in one.events("run_started")] == [None, 30]


def test_a_controller_that_is_killed_while_its_store_hangs_goes_on_elsewhere_without_a_step_lost(
    bucket: Url, tmp_path: Path
) -> None:
    with lab(tmp_path / "one", NODES, steps=400, **SMALL) as one:
        one.full(10)
        os.kill(bucket.pid, signal.SIGSTOP)
        try:
            before = len(one.steps())
            one.until(lambda: len(one.steps()) >= before + 20)  # training waits for no store
            one.controller.kill()
            one.controller.join()
            at = one.committed()
        finally:
            os.kill(bucket.pid, signal.SIGCONT)
        assert len(read.steps(local_record(PLACE))) < at, "the store has all: nothing is tried here"
        one.another_controller(tmp_path / "elsewhere")
        one.until(lambda: one.events("controller_back"))
        hurry(one)
        published(one, 400)
        assert one.events("record_gap") == []
        assert one.events("death") == []


@pytest.mark.parametrize("frozen", [True, pytest.param(False, marks=pytest.mark.long)])
def test_of_two_controllers_at_once_the_older_ends_and_says_so_and_the_run_goes_on(
    bucket: Url, tmp_path: Path, frozen: bool
) -> None:
    with lab(tmp_path / "one", NODES, steps=400, **SMALL) as one:
        one.full(10)
        if frozen:
            os.kill(one.controller.pid, signal.SIGSTOP)
        former = one.another_controller(tmp_path / "elsewhere")
        one.until(lambda: one.path.exists() and one.events("controller_back"))
        if frozen:
            os.kill(former.pid, signal.SIGCONT)
        former.join()
        assert "another controller" in (tmp_path / "one" / "controller.log").read_text()
        hurry(one)
        published(one, 400)
        assert one.events("death") == []
