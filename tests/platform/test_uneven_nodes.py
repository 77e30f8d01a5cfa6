"""Cells over nodes of different numbers of slots, on real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shoal.plan import first_plan
from shoal.testing import Lab
from tests.support.lab import alone, hurry, lab


def test_cells_form_of_what_nodes_there_are_though_one_went_before_they_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned on nodes of one and of three slots, of which the larger dies before the controller begins: one cell runs
    until another node comes."""
    planned = first_plan({"one": 1, "gone": 3}, 2, 2)
    assert set(planned.values()) == {"one", "gone"}
    monkeypatch.setattr(sys.modules[Lab.__module__], "first_plan", lambda *_: planned)
    with lab(tmp_path, {"one": 1, "two": 2}, steps=100, spares=0, audit={"samples": True}) as one:
        one.until(lambda: one.committed() > 5)
        assert one.steps()[-1]["cells"] == 1
        one.add_node("three", 3)
        one.full(10)
        crews = [worker for cell in (0, 1) for worker in one.members(cell)]
        assert {worker.rpartition("@")[2] for worker in crews} >= {"one", "three"}
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps_lost"]) == ("done", 0), one.story()
        assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
        assert [line["loss"] for line in one.steps()] == pytest.approx(alone(100).losses, rel=1e-4)
