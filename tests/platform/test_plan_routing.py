"""`shoal plan --routing` and `--like`: at which quantile of routed rows a model fits, and by which run's MaxVio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal_core.errors import UserError
from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.fits import check_fits
from shoal_workloads.routing import RoutingConfig, busiest, measured

SMALL = ["plan", "--model", "v3-small-16b", "--cluster", "1x8xH100", "--pp", "1", "--ep", "8", "--global-batch", "64",
         "--precision", "bf16", "--recompute", "dispatch"]  # fmt: skip
SECTION: dict[str, Any] = {
    "model": {"preset": "v3-small-16b"},
    "data": {"corpus": "none", "seq_len": 4096},
    "batch": {"global_batch": 64},
    "optim": {"moments": "bf16"},
    "parallel": {"ep": 8, "recompute": "dispatch"},
    "precision": "bf16",
    "device": "cuda",
}


def asked(*options: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*SMALL, *options, "--json"])
    assert done.exit_code in (0, 2), done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_quantile_is_taken_as_preflight_takes_it() -> None:
    config = PretrainConfig.model_validate(SECTION)
    for text, quantile in (("p99", 0.99), ("p99.9", 0.999)):
        found = asked("--routing", text)
        job = config.model_copy(update={"routing": RoutingConfig(quantile=quantile)})
        assert found["routing"] == {"quantile": quantile, "lasting": 0.05, "by_text": 1.0,
                                    "busiest": busiest(job.routing, job.model, 8, 8, 4096)}  # fmt: skip
        assert found["memory_peak_bytes"] == check_fits(job, 8).total
        assert any(f"{100 * quantile:g}% of micro-batches" in one and "assumed" in one for one in found["reasons"])
    assert asked()["routing"]["quantile"] == 0.99
    lines = CliRunner().invoke(app, [*SMALL, "--routing", "p95"], env={"COLUMNS": "300"})
    assert "at p95 routing" in lines.stdout
    for wrong in ("99", "p0", "p100", "pp9"):
        done = CliRunner().invoke(app, [*SMALL, "--routing", wrong])
        assert isinstance(done.exception, UserError)
        assert "--routing" in done.exception.problem


def record(folder: Path, steps: list[dict[str, Any]]) -> Path:
    """A run of 64 experts on 32 samples a step."""
    folder.mkdir()
    model = {"preset": "v3-small-16b"}
    own = {"model": model, "data": {"corpus": "none", "seq_len": 128}, "batch": {"global_batch": 32}}
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"workload": {"path": "shoal_workloads.pretrain:Pretrain", **own}})
    )
    common = {"time": 1.0, "tokens": 4096, "seconds": 1.0, "cells": 1, "generation": 0, "loss": 1.0}
    lines = [{"step": i, "samples": [32 * i, 32 * i + 32], **common, **one} for i, one in enumerate(steps)]
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "events.jsonl").write_text("")
    return folder


def test_a_runs_own_imbalance_is_taken(tmp_path: Path) -> None:
    rows = [[0.5, 0.7], [0.9, 0.6], [0.8, 1.1]]
    steps: list[dict[str, Any]] = [{f"max_violation.{i}": value for i, value in enumerate(row)} for row in rows]
    run = record(tmp_path / "run", [*steps, {"max_violation.0": None, "max_violation.1": 0.2}])
    found = asked("--like", str(run), "--routing", "p95")
    model = PretrainConfig.model_validate(SECTION).model
    expected = measured(rows, model, 32, 128, 0.95)
    assert found["routing"] == {**expected.model_dump(), "busiest": busiest(expected, model, 8, 8, 4096)}
    assert any("as in run" in one for one in found["reasons"])
    none = record(tmp_path / "none", [{}])
    done = CliRunner().invoke(app, [*SMALL, "--like", str(none)])
    assert isinstance(done.exception, UserError)
    assert "max_violation" in done.exception.problem
