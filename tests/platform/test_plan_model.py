"""`shoal plan --model`: the bill before it comes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app

KEYS = {
    "memory_peak_bytes", "memory_parts", "step_seconds", "step_parts", "tokens_per_second", "mfu",
    "gpu_hours_per_trillion_tokens", "gpu_hours", "days", "dollars", "dollars_with_failures", "layout", "reasons",
}  # fmt: skip
V3 = ["plan", "--model", "deepseek-v3", "--cluster", "256x8xH800", "--pp", "16", "--ep", "64"]


def test_a_model_that_fits_is_priced() -> None:
    done = CliRunner().invoke(app, [*V3, "--recompute", "dispatch", "--waiting", "4", "--tokens", "14.8T", "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert found["fits"]
    assert sum(found["memory_parts"].values()) == found["memory_peak_bytes"]
    assert found["dollars"] == pytest.approx(2.0 * found["gpu_hours"])
    assert found["gpu_hours"] == pytest.approx(14.8 * found["gpu_hours_per_trillion_tokens"])
    assert any("2024-12" in reason for reason in found["reasons"])  # a default price is told with its date


def test_what_does_not_fit_ends_with_2_and_says_by_how_much() -> None:
    done = CliRunner().invoke(app, [*V3, "--json"])
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert not found["fits"]
    assert found["dollars"] is None
    more = (found["memory_peak_bytes"] - 80e9) / 1e9
    assert f"needs {more:.1f} GB more" in found["reasons"][0]


def test_failures_are_priced_by_the_controllers_own_decisions() -> None:
    small = ["plan", "--model", "v3-small-16b", "--cluster", "8x8xH100", "--pp", "1", "--ep", "8", "--tokens", "20B"]
    done = CliRunner().invoke(
        app,
        [*small, "--global-batch", "512", "--workers-per-cell", "16", "--precision", "bf16", "--failures", "--json"],
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert all(0 < share <= 1 for share in found["trains_with_failures"].values())
    for name, dollars in found["dollars_with_failures"].items():
        nodes = 8 + (1 if "spare node" in name else 0)
        assert dollars == pytest.approx(found["dollars"] / found["trains_with_failures"][name] * nodes / 8)


def test_people_are_told_the_layout_the_parts_and_the_bill() -> None:
    done = CliRunner().invoke(app, [*V3, "--recompute", "dispatch", "--waiting", "4", "--tokens", "14.8T"])
    assert done.exit_code == 0
    told = " ".join(done.stdout.split())
    assert "deepseek-v3 on 256x8 H800: 2 cells of pp 16 x fsdp 1 x ep 64, dualpipe, waiting 4" in told
    assert "memory: fits, 76.8 of 80 GB" in told
    assert "$5,7" in told
    assert "bubble" in told


def test_the_errors_against_published_figures_are_told() -> None:
    done = CliRunner().invoke(app, ["plan", "--validate", "--json"])
    figures = {one["name"]: one for one in json.loads(done.stdout)}
    assert figures["step"]["error"] == pytest.approx(figures["step"]["ours"] / 19.926 - 1)
    assert sum(one["fitted"] for one in figures.values()) == 2
    assert "fitted" in CliRunner().invoke(app, ["plan", "--validate"]).stdout
