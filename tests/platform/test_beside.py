"""Stacks and profiles of workers on other nodes than the controller's, where a run lies on a store."""

from __future__ import annotations

from pathlib import Path

import torch
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.names import stacks_file
from shoal.protocol import orders
from shoal.record.place import local_record
from shoal.worker import fencing
from shoal.worker.profiler import Profiler
from shoal_core.store import join, open_store
from tests.platform.test_profile import Told
from tests.support.published import empty_storage, publish

__all__ = ["empty_storage"]
WORKER = "r/cell0/stage0/shard0@n1"


def test_they_are_where_the_run_is(empty_storage: str, tmp_path: Path) -> None:
    publish(empty_storage, "r", tmp_path / "controllers")
    place, node = join(empty_storage, "r"), tmp_path / "another node"
    node.mkdir()
    told = Told()
    profiler = Profiler(WORKER, node, place, told)
    profiler.wanted = orders.Profile(0, 0)
    with profiler.around(0):
        torch.ones(4, 4) @ torch.ones(4, 4)
    note = told.wait()
    assert note["problem"] is None
    assert open_store(place).get(note["path"]) == (node / note["path"]).read_bytes()
    name = stacks_file(WORKER, 7)
    fencing.keep(node / name, "in a collective")
    fencing.send(place, node, name)
    assert (local_record(place) / name).read_text() == "in a collective"
    said = CliRunner().invoke(app, ["profile", "r", "--storage", empty_storage])
    assert said.exit_code == 0, said.output
    assert f"{(node / note['path']).stat().st_size:,}  {join(place, note['path'])}" in said.output


def test_what_the_store_does_not_take_stays_and_is_told(empty_storage: str, tmp_path: Path) -> None:
    place = "s3://no-such-bucket/r"
    told = Told()
    profiler = Profiler(WORKER, tmp_path, place, told)
    profiler.wanted = orders.Profile(0, 0)
    with profiler.around(0):
        pass
    note = told.wait()
    assert note["problem"].startswith("it stays on its node: s3://no-such-bucket/r/profiles/")
    assert (tmp_path / note["path"]).exists()
    fencing.keep(tmp_path / "stacks" / "a.txt", "x")
    fencing.send(place, tmp_path, "stacks/a.txt")
