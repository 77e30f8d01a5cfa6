"""`shoal plan`: the plan as a table, as values, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal_core.errors import UserError

JOB = """
steps: 1
cells: 3
workers_per_cell: 4
spares: 2
workload: {path: "shoal_workloads.synthetic:Synthetic"}
"""


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return str(path)


def test_the_plan_is_shown_by_node_with_what_a_loss_would_move(job: str) -> None:
    done = CliRunner().invoke(app, ["plan", job, "--cluster", "8x4", "--per-rack", "2", "--zones", "2", "--lose", "n4"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "3 cells of pp 1 x fsdp 1 x ep 4 on 8 nodes; 2 spares" in text
    assert "copies are kept apart by rack; by zone impossible: only 2 zones have slots for 3 cells" in text
    assert "if n4 is lost (4 shards, of cells 1): 4 shards get another place" in text


def test_as_json_every_seat_has_a_slot_of_its_own(job: str) -> None:
    done = CliRunner().invoke(app, ["plan", job, "cells=2", "--cluster", "3x4", "--per-rack", "1", "--json"])
    found = json.loads(done.output)
    assert found["apart"] == "rack"
    assert [place[:3] for place in found["places"]] == [[c, 0, s] for c in range(2) for s in range(4)]
    slots = [tuple(place[3:]) for place in found["places"]] + [tuple(spare) for spare in found["spares"]]
    assert len(set(slots)) == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cluster", "1x3"], "needs 4 slots, the cluster has 3"),
        (["--cluster", "8by4"], "NODESxSLOTS"),
        (["--cluster", "8x4", "--zones", "2"], "8 nodes in racks of 16 make 1 racks"),
        (["--cluster", "8x4", "--lose", "n9"], "--lose n9: no such node"),
    ],
)
def test_what_is_refused(job: str, options: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["plan", job, *options])
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)
