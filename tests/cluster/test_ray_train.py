"""`ShoalTrainer` on a Ray that it starts itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.train import Result

from shoal.train import read_result

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/first_run.py"


def test_a_process_like_a_notebook_trains_interrupts_restores_and_reads(tmp_path: Path) -> None:
    """And the example of docs/ray-train.md, in the same process."""
    told = subprocess.run(
        [sys.executable, "-", str(tmp_path), str(EXAMPLE)],
        input=(Path(__file__).parent / "notebook.py").read_text(),
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    assert "stopped by SIGINT" in found["interrupted"]
    assert found["stopped"] < 200
    assert found["resumed"] == [None, found["stopped"] + 1]
    assert found["steps"] == list(range(300))
    assert found["again"] == 299
    assert found["path"] == str(tmp_path / "long")
    assert found["best"] > 2  # none was removed
    first = read_result(str(tmp_path / "first-run"))
    assert first.error is None
    assert first.metrics_dataframe is not None
    assert list(first.metrics_dataframe["step"]) == list(range(40))
    assert first.best_checkpoints is not None
    assert 1 < len(first.best_checkpoints) <= 3
    by_ray = Result.from_path(str(tmp_path / "first-run"))
    assert by_ray.get_best_checkpoint("loss", "min").path == first.best_checkpoints[-1][0].path
    assert by_ray.metrics is not None
    assert by_ray.metrics["step"] == 39
