"""Two cells that save together, on real processes: each worker writes a quarter, and what dies half-way is no
checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal import testing
from shoal_core.ckpt import alone, among
from shoal_core.ckpt.whole import Checkpoint
from shoal_core.store import open_store
from tests.support.lab import WORKLOAD, Lab, hurry, lab

PARAMETERS = {"parameters": 100_000}
STATE: dict[str, Any] = {"workload": PARAMETERS, "cells": 2, "workers_per_cell": 2, "audit": {"samples": True}}


def fine(one: Lab, steps: int) -> None:
    """The run is done as if nothing had happened, and of its checkpoints each is whole and nothing else is there."""
    run = one.finished()
    assert (run["status"], run["steps"]) == ("done", steps), one.story()
    assert (run["samples_repeated"], run["samples_skipped"]) == (0, 0)
    undisturbed = testing.alone(WORKLOAD | PARAMETERS | {"seconds": 0.0}, steps)
    assert [line["loss"] for line in one.steps()] == pytest.approx(undisturbed.losses, rel=1e-4)
    for whole in among.whole(open_store(one.path / "checkpoints")):
        Checkpoint.open(whole.folder).verify()
        assert not [name for name in whole.folder.sizes() if "part" in name], "what cells said is removed"


def test_each_worker_writes_a_quarter_and_all_of_it_is_the_state(tmp_path: Path) -> None:
    """First to their nodes' disks; and it is gone back to when nobody is left who holds one half."""
    settings = {"every": 10, "keep": 10, "local": str(tmp_path / "disks")}
    with lab(tmp_path, {f"n{i}": 1 for i in range(4)}, steps=40, checkpoint=settings, **STATE) as one:
        one.until(lambda: one.events("checkpoint"))
        near = {path.name: path.stat().st_size for path in (tmp_path / "disks").rglob("step-00000010/*.safetensors")}
        one.kill(one.members(0)[0])
        one.kill(one.members(1)[0])
        one.until(lambda: len(one.events("death")) >= 2)
        hurry(one)
        fine(one, 40)
        assert "restore" in [event["rung"] for event in one.events("decision")]
        first, *_ = among.whole(open_store(one.path / "checkpoints"))
        checkpoint = Checkpoint.open(first.folder)
        state = sum(tensor.nbytes for tensor in alone.read(checkpoint).values())
        assert state >= 2 * 4 * 100_000
        sizes = [file.bytes - file.header for file in checkpoint.index.files.values()]
        assert (len(sizes), sum(sizes)) == (4, state), "each byte once"
        assert max(sizes) - min(sizes) < 0.01 * state
        assert near == {name: file.bytes for name, file in checkpoint.index.files.items()}
        told, *_ = one.events("checkpoint")
        assert (told["step"], told["bytes"]) == (first.steps, checkpoint.bytes)


@pytest.mark.parametrize("cell", [0, 1])
def test_a_cell_that_dies_while_it_writes_leaves_nothing_that_is_believed(tmp_path: Path, cell: int) -> None:
    inject = [{"at": "checkpoint", "step": 10, "cell": cell, "rank": 1, "how": "kill"}]
    settings = {"every": 10, "keep": 10}
    with lab(tmp_path, {"n0": 2, "n1": 3}, steps=40, checkpoint=settings, inject=inject, **STATE) as one:
        one.until(lambda: one.events("death"))
        one.until(lambda: one.events("checkpoint"))
        hurry(one)
        fine(one, 40)
        saved = [event["step"] for event in one.events("checkpoint")]
        failed = {event["step"] for event in one.events("checkpoint_failed")}
        assert failed <= {10}
        assert (10 in saved) != (10 in failed), "it was whole just before, or it is told that it is not"
        assert saved[0] < 20, "and is begun anew, with the state of then"
        assert saved[-1] == 40
