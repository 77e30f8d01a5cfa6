"""`shoal plan --calibrate`: what it keeps and says. What it measures: tests/workloads/test_calibrate.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from shoal.cli.calibrate import name_of
from shoal.cli.main import app
from shoal_core.errors import UserError
from shoal_workloads.estimate import calibrate as measuring
from shoal_workloads.estimate import calibrate_cpu

PASSES = {name: {"each": 1e-3, "byte": 1e-9} for name in ("forward", "input", "weight", "backward")}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which devices were."""
    from shoal_workloads.estimate.hardware import Calibration

    seen = list[str]()
    computing = {
        "product": {"each": 1e-6, "flop": 1e-11, "byte": 0.0}, "core": {"forward": {}, "backward": {}},
        "dense": PASSES, "moe": PASSES, "ends": {"each": 5e-4},
    }  # fmt: skip
    values = {"measured": "2026-11-30", "versions": {}, "spread": 0.01, "busy": 0.0, "cores": 2}
    calibration = Calibration.model_validate(values | {"computing": {"fp32": computing}})
    entry = calibrate_cpu.NO_DEVICE.model_copy(update={"device": "A CPU", "calibration": calibration})

    def calibrate(kind: str, **_: Any) -> Any:
        seen.append(kind)
        return entry

    monkeypatch.setattr(measuring, "calibrate", calibrate)
    return seen


def test_a_calibrated_machine_plans_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]) -> None:
    path = tmp_path / "own.yaml"
    monkeypatch.setenv("SHOAL_HARDWARE", str(path))
    path.write_text("")
    told = CliRunner().invoke(app, ["plan", "--calibrate", "--name", "mine"], catch_exceptions=False).output
    assert f"kept in {path}" in told
    assert "shoal plan JOB.yaml --cluster 1x2xmine" in told
    assert list(yaml.safe_load(path.read_text())) == ["mine"]
    asked = ["plan", "--model", "laptop-1m", "--cluster", "1x2xmine", "--precision", "fp32", "--seq-len", "64"]
    options = ["--global-batch", "4", "--pp", "1", "--ep", "1", "--json"]
    found = json.loads(CliRunner().invoke(app, [*asked, *options], catch_exceptions=False).stdout)
    assert found["step_parts"]["host"] > 0
    error = CliRunner().invoke(app, [*asked, *options[:-1], "--precision", "bf16"]).exception
    assert isinstance(error, UserError)
    assert "was measured in fp32, not in bf16" in error.problem
    assert measured


def test_a_table_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, measured: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    error = CliRunner().invoke(app, ["plan", "--calibrate", "--hardware", str(tmp_path / "file" / "x.yaml")]).exception
    assert isinstance(error, UserError)
    assert "cannot be written" in error.problem
    assert not measured


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon"),
        ("AMD EPYC", "amd-epyc"),
        ("13th Gen Intel(R) Core(TM) i7", "device-13th-gen-intel-core-i7"),
        ("", "here"),
    ],
)
def test_a_device_gets_a_name_that_can_be_typed(tmp_path: Path, device: str, name: str) -> None:
    assert name_of(device) == name
    measuring.check_table(name, tmp_path / "own.yaml")
