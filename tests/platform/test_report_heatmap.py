"""The picture of load imbalance, from a record of steps."""

from __future__ import annotations

import base64
import math
import re
import struct
from pathlib import Path

import numpy as np

from shoal.record.rundir import RunDir
from shoal.report import build
from shoal.report.heatmap import columns, violations
from shoal.report.history import History

LAYERS = 12


def record(storage: Path, steps: int, layers: int = LAYERS) -> RunDir:
    """Imbalance falls from 7.7 with the steps; layer 3 stays worse than the rest; step 1 does not tell layer 2."""
    run = RunDir.create(storage, "experts", {}, resume=False)
    run.append_event("run_started", run_id="experts", steps=steps, cells=1, workers_per_cell=1, time=0.0)
    for step in range(steps):
        found = {f"max_violation.{i}": 7.5 * math.exp(-step / 30) + (0.6 if i == 3 else 0.2) for i in range(layers)}
        if step == 1:
            found.pop("max_violation.2", None)
        run.append_step({"step": step, "time": float(step), "loss": 2.0, "lm_loss": 2.0, "mtp_loss": None, "lr": 0.1,
                         "grad_norm": 1.0, "tokens": 64, "samples": [step, step + 1], "cells": 1, "generation": 0,
                         "seconds": 1.0, **found})  # fmt: skip
    return run


def test_layers_are_rows_in_order_of_their_number(tmp_path: Path) -> None:
    values = violations(History.read(record(tmp_path, 40).path))
    assert values.shape == (LAYERS, 40)
    assert np.isnan(values[2, 1])
    assert np.count_nonzero(np.isnan(values)) == 1
    assert (values[3, 2:] - values[11, 2:]).round(6).tolist() == [0.4] * 38  # not in the order of their names


def test_columns_are_means_of_neighbours_that_are_known() -> None:
    values = np.full((2, 801), 1.0)
    values[0, :3] = [4.0, np.nan, 7.0]
    values[1, -3:] = np.nan
    found, size = columns(values)
    assert (found.shape, size) == ((2, 267), 3)
    assert found[0, 0] == 5.5
    assert np.isnan(found[1, -1])
    assert (found[1, :-1] == 1.0).all()


def test_the_page_shows_a_picture_of_its_own(tmp_path: Path) -> None:
    text = build(record(tmp_path, 1000).path).read_text()
    assert "Are the experts evenly used?" in text
    assert "MaxVio), means of 3 steps" in text
    assert "1.23 times the mean load (mean over layers), at worst 1.60 times, in MoE layer 3" in text
    pngs = [base64.b64decode(found) for found in re.findall(r'href="data:image/png;base64,([^"]+)"', text)]
    assert len(pngs) == 2  # the map and its scale
    assert all(png.startswith(b"\x89PNG") and min(struct.unpack(">II", png[16:24])) > 1 for png in pngs)
    assert not re.search(r'(href|src)="(?!#|data:image/png)', text)


def test_a_model_without_experts_has_no_such_section(tmp_path: Path) -> None:
    assert "evenly used" not in build(record(tmp_path, 3, layers=0).path).read_text()
