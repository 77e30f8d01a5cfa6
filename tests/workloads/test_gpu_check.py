"""The GPU check's tiny mode runs everywhere and prints one JSON with all four parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def test_tiny_mode() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--tiny"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["about"]["tiny"] is True
    for group in ("dense", "grouped"):
        for product in ("fprop", "dgrad", "wgrad"):
            figures = found["gemm"][group][product]
            assert figures["bf16_error"] < 0.005
            assert 0.005 < figures["fp8_error"] < 0.08
    assert found["attention"]["forward_backward_tflops"] is None  # small shapes say nothing about speed
    for precision in ("bf16", "fp8"):
        layer = found["layer"][precision]
        assert layer["tokens_per_second"] * layer["ms"] / 1e3 == pytest.approx(found["layer"]["tokens"])
    losses = found["slice"]["bf16"]["losses"]
    assert losses[-1] < losses[0]
    assert abs(found["slice"]["fp8_loss_over_bf16"]) < 0.02


def test_an_unknown_part_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--parts", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no part 'x'" in done.stderr
