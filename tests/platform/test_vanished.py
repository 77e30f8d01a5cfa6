"""A run whose folder is away for a while, as when its disk is unmounted: training goes on, nothing is written anew in
its place, and it is told with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.record import read
from shoal_core.ckpt import among
from shoal_core.store import open_store
from tests.support.lab import hurry, lab


@pytest.mark.long
def test_a_run_trains_on_while_its_folder_is_away(tmp_path: Path) -> None:
    settings = {"cells": 1, "steps": 400, "checkpoint": {"every": 10, "keep": 50}}
    with lab(tmp_path, {"n0": 2}, **settings) as one:
        one.until(lambda: one.events("checkpoint"))
        away = one.path.with_name("away")
        one.path.rename(away)
        try:
            while not (failed := [event for event in read.events(away) if event["kind"] == "checkpoint_failed"]):
                assert not one.path.exists()
        finally:
            away.rename(one.path)
        assert "is not any more" in failed[0]["reason"]
        assert "mount the disk again" in failed[0]["remedy"]
        saved = len(one.events("checkpoint"))
        one.until(lambda: len(one.events("checkpoint")) > saved)
        hurry(one)
        run = one.finished()
        assert (run["status"], run["steps"], run["steps_lost"]) == ("done", 400, 0), one.story()
        assert any("is not any more" in event["reason"] for event in one.events("record_stalled"))
        steps = [event["step"] for event in one.events("checkpoint")]
        assert [whole.steps for whole in among.whole(open_store(one.path / "checkpoints"))] == steps
