"""A user's PyTorch model in runs on this machine whose workers are really killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.testing import alone, assert_exactly_once, lab, preload

preload("tests.support.torchmodels", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor")


def workload(kind: str = "Language", **settings: Any) -> dict[str, Any]:
    return {"path": f"tests.support.torchmodels:{kind}", "global_batch": 12, "lr": 3e-3, "ema_decay": 0.9, **settings}


def test_a_worker_is_killed_and_no_loss_is_another(tmp_path: Path) -> None:
    """2 cells of 2 workers, whose shards end in the middle of its matrices; by dropout that hangs on nobody's place."""
    steps = 20
    with lab(
        tmp_path, dict.fromkeys(("a", "b", "c"), 2), steps=steps, workload=workload(), audit={"samples": True}
    ) as run:
        run.full(steps=3, spares=2)
        run.kill(run.members(cell=1)[0])
        summary = run.finished()
    assert (summary["status"], summary["steps_lost"], len(run.events("death"))) == ("done", 0, 1), run.story()
    assert_exactly_once(run.path, steps)
    expected = alone(workload(), steps).losses
    assert [line["loss"] for line in run.steps()] == pytest.approx(expected, rel=1e-5)
