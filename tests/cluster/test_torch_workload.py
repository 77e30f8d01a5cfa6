"""A script that defines a PyTorch model and trains it, on a Ray that it starts itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.record.jsonl import read_json
from shoal.testing import alone
from shoal.train import read_result

pytestmark = pytest.mark.cluster

SCRIPT = """
import sys

import torch
from ray.train import RunConfig, ScalingConfig
from torch import nn

from shoal.train import ShoalTrainer, TorchWorkload


class Mine(TorchWorkload):
    def build_model(self, config):
        return nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.1), nn.Linear(5, 1))

    def dataset(self, config):
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))

    def loss(self, model, batch):
        x, y = batch
        return nn.functional.mse_loss(model(x), y, reduction="sum"), len(x)


if __name__ == "__main__":
    result = ShoalTrainer(
        Mine,
        workload_config={"global_batch": 8, "micro_batch": 2},
        shoal_config={"steps": 12, "workers_per_cell": 2, "mlflow": {"enabled": False}},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="mine", storage_path=sys.argv[1]),
    ).fit()
    print("last loss", result.metrics["loss"])
"""


def test_a_script_trains_the_class_that_it_defines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "train_mine.py"
    script.write_text(SCRIPT)
    told = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "runs")],
        env={**os.environ, "RAY_ADDRESS": "local"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "parameters 26, samples 40" in told.stdout
    run = read_json(tmp_path / "runs/mine/run.json") or {}
    # Half of the rows of (5, 3), 5, (1, 5) and 1, rounded up: 9 + 3 + 5 + 1 numbers of 4 bytes.
    assert run["predicted"]["memory_parts"]["parameters"] == 72
    assert run["actual"]["clean_steps"] == 12 - 3
    assert run["actual"]["memory_peak_bytes"] > 0
    assert "memory of the worker that needs most" in told.stdout
    assert "As predicted?" in (tmp_path / "runs/mine/report.html").read_text()
    frame = read_result(str(tmp_path / "runs/mine")).metrics_dataframe
    assert frame is not None
    monkeypatch.syspath_prepend(str(tmp_path))
    expected = alone({"path": "train_mine:Mine", "global_batch": 8, "micro_batch": 2}, 12).losses
    assert list(frame["loss"]) == pytest.approx(expected, rel=1e-5)
