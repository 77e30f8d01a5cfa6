"""The picture of a pipeline step in the report, from a record."""

from __future__ import annotations

import re
from pathlib import Path

from shoal.record.rundir import RunDir
from shoal.report import build
from shoal_workloads.parallel.schedule import Span, picture, simulate
from shoal_workloads.parallel.schedule import build as build_schedule


def record(storage: Path, *, measured: bool) -> RunDir:
    run = RunDir.create(storage, "piped", {}, resume=False)
    run.append_event("run_started", run_id="piped", steps=2, cells=1, workers_per_cell=2, time=0.0)
    for step in range(2):
        run.append_step({"step": step, "time": float(step), "loss": 2.0, "lm_loss": 2.0, "mtp_loss": None, "lr": 0.1,
                         "grad_norm": 1.0, "tokens": 64, "samples": [step, step + 1], "cells": 1, "generation": 0,
                         "seconds": 1.0})  # fmt: skip
    if measured:
        schedule = build_schedule("dualpipe", 2, 4)
        late = simulate(schedule, send=0.25).spans
        spans = [[Span(span.step, 5 + span.start, 5 + span.end) for span in rank] for rank in late]
        run.append_event("pipeline_step", step=1, cell=0, time=2.0, **picture(schedule, range(4), spans))
    return run


def test_the_measured_step_is_drawn_beside_the_planned_one(tmp_path: Path) -> None:
    text = build(record(tmp_path, measured=True).path).read_text()
    assert "Is the pipeline full?" in text
    told = re.search(r"would wait ([\d.]+)% of the time; they waited ([\d.]+)%", text)
    assert told is not None
    assert float(told[1]) < float(told[2])
    assert "Planned: 12 s" in text
    assert "Step 2 of cell 0, schedule dualpipe" in text


def test_no_pipeline_no_picture(tmp_path: Path) -> None:
    assert "pipeline full" not in build(record(tmp_path, measured=False).path).read_text()
