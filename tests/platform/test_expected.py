"""What a record says was predicted of a run, and what it came to: from its lines, for people, MLflow and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.record.expected import compare, rows, told
from shoal.record.rundir import RunDir
from shoal.record.summary import summarize
from shoal.report import build
from shoal.tracking.mirror import _predicted
from shoal_core.errors import UserError

WHOLE = {"samples": 4, "memory_peak_bytes": 900, "step_seconds": 0.5, "tokens_per_second": 200.0, "why": []}


def a_step(step: int, generation: int = 0, **more: Any) -> dict[str, Any]:
    first = 4 * step
    return {
        "step": step, "time": 100.0 + step, "loss": 4.0, "lm_loss": 4.0, "mtp_loss": None, "grad_norm": 1.0, "lr": 1e-3,
        "tokens": 100, "samples": [first, first + 4], "cells": 2, "generation": generation, "seconds": 9.0,
        "worker_seconds": 0.4, **more,
    }  # fmt: skip


def started(**more: Any) -> dict[str, Any]:
    return {
        "kind": "run_started",
        "time": 99.0,
        "run_id": "job",
        "steps": 20,
        "cells": 2,
        "workers_per_cell": 1,
        **more,
    }


def generation(number: int, live: int = 2, shape: int = 0) -> dict[str, Any]:
    told = {"number": shape, "cells": live, "pp": 1, "fsdp": 1, "ep": 1} if shape else None
    return {"kind": "generation", "time": 99.5, "generation": number, "step": 0, "live": live, "shape": told}


def predicted(shape: int = 0, cells: int = 2, workers: int = 1, **figures: Any) -> dict[str, Any]:
    crew = {"shape": shape, "cells": cells, "workers": workers, "nodes": 2, "device": "a chip"}
    return {"kind": "predicted", "time": 99.6, **crew, "figures": WHOLE | figures}


def memory(size: int, shape: int = 0) -> dict[str, Any]:
    return {"kind": "memory", "time": 104.0, "actor": "w", "bytes": size, "measured": "device", "shape": shape}


def test_only_undisturbed_steps_of_what_was_predicted_count() -> None:
    """Not those where a generation begins, nor of a smaller batch, nor of fewer cells."""
    events = [started(), generation(0), predicted(), memory(800), memory(1000), generation(1, live=1), generation(2)]
    steps = [a_step(k, worker_seconds=5.0) for k in range(3)]
    steps += [a_step(k, worker_seconds=0.3 + k / 10) for k in range(3, 6)]
    steps += [a_step(6, samples=[24, 26], worker_seconds=7.0)]
    steps += [a_step(k, 1, cells=1, worker_seconds=8.0) for k in range(7, 12)]
    steps += [a_step(k, 2, worker_seconds=5.0 if k < 15 else 0.9) for k in range(12, 16)]
    found = compare(steps, events, 3600.0)
    assert found["actual"] == {
        "clean_steps": 4, "memory_peak_bytes": 1000, "memory_measured": "device", "step_seconds": 0.75,
        "tokens_per_second": 100 / 0.75, "mfu": None, "recoveries": 0,
    }  # fmt: skip
    # Llama 3: 466 interruptions of 16,384 GPUs in 54 days; here 2 workers for an hour.
    assert found["predicted"]["recoveries"] == pytest.approx(466 / (54 * 24 * 16_384) * 2)  # type: ignore[index]


def test_the_shape_with_most_steps_is_told_of_and_sessions_are_kept_apart() -> None:
    events = [
        started(), generation(0), predicted(step_seconds=1.0), memory(500),
        started(resumed_from=6), generation(0), predicted(step_seconds=2.0), memory(600),
        generation(1, 1, shape=1), predicted(1, 1, 2, step_seconds=3.0), memory(700, 1),
        {"kind": "recovery", "time": 1.0},
    ]  # fmt: skip
    steps = [a_step(k, worker_seconds=1.0) for k in range(6)] + [a_step(k, worker_seconds=2.0) for k in range(6, 11)]
    assert compare(steps, events, 1.0)["predicted"]["step_seconds"] == 1.0  # type: ignore[index]  # 3 clean of 6, 2 of 5
    steps += [a_step(k, 1, cells=1, worker_seconds=4.0) for k in range(11, 20)]
    found = compare(steps, events, 1.0)
    assert found["predicted"]["step_seconds"] == 3.0  # type: ignore[index]
    assert (found["actual"]["step_seconds"], found["actual"]["memory_peak_bytes"]) == (4.0, 700)  # type: ignore[index]
    assert found["actual"]["recoveries"] == 1  # type: ignore[index]


def test_nothing_predicted_is_null_and_no_line() -> None:
    found = compare([a_step(0)], [started(), generation(0)], 1.0)
    assert found == {"predicted": None, "actual": None}
    assert rows(found) == told(found) == []


def test_figures_that_are_not_known_are_said_to_be_so() -> None:
    only: dict[str, Any] = {
        "step_seconds": None,
        "tokens_per_second": None,
        "why": ["no table knows 'a chip': shoal plan --calibrate"],
    }
    found = compare([a_step(k) for k in range(9)], [started(), generation(0), predicted(**only), memory(1000)], 1.0)
    table = {row.name: (row.predicted, row.actual, row.words) for row in rows(found)}
    assert table["seconds of a step"] == ("-", "0.4", "")
    assert table["memory of the worker that needs most"] == ("900 bytes", "1.0 kB", "-10.0%")
    assert "tokens a second" not in table
    assert "No table knows 'a chip': shoal plan --calibrate." in told(found)


def record(storage: Path, *events: dict[str, Any], steps: int = 9) -> RunDir:
    run = RunDir.create(storage, "job", {"run_id": "job"}, resume=False)
    for event in (started(), generation(0), *events):
        run.append_event(event["kind"], **{key: value for key, value in event.items() if key != "kind"})
    for step in range(steps):
        run.append_step(a_step(step))
    run.append_event("run_ended", status="done", time=120.0)
    return run


def test_the_record_has_it_and_so_have_mlflow_and_the_report(tmp_path: Path) -> None:
    over = {"times": [0.0, 0.5, 1.0], "parts": {"moments": [300, 300, 300], "activations: attention": [0, 600, 0]}}
    lanes = [[["F0.0", 0.0, 0.1], ["B0.0", 0.1, 0.3]]]
    step = {"step": 5, "cell": 0, "schedule": "1f1b", "planned": lanes, "measured": lanes}
    shown = {**step, "planned_idle": 0.0, "measured_idle": 0.0, "kind": "pipeline_step", "time": 106.0}
    run = record(tmp_path, predicted(memory_over_step=over, pipeline=lanes), memory(1000), shown)
    found = summarize(run.path)
    assert found["predicted"]["memory_peak_bytes"] == 900
    assert not {"memory_over_step", "pipeline"} & set(found["predicted"])  # the journal has those
    mirrored = {metric.key: metric.value for metric in _predicted(found, 1.0)}
    assert mirrored["predicted.step_seconds"] == 0.5
    assert mirrored["actual.step_seconds"] == 0.4
    assert mirrored["actual.memory_peak_bytes"] == 1000
    assert mirrored["actual.tokens_per_second"] == pytest.approx(250.0)
    page = build(run.path).read_text()
    section = page[page.index("As predicted?") :]
    for words in (
        "900 bytes",
        "1.0 kB",
        "-10.0%",
        "2 cells of 1 worker on a chip",
        "measured: 0.001 MB",
        "Predicted: 0.3 s",
    ):
        assert words in section, words


def test_a_line_that_is_not_as_written_is_a_damaged_record(tmp_path: Path) -> None:
    run = record(tmp_path, predicted(), memory(1000))
    events = run.path / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "memory":
            line["bytes"] = "much"
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="a field of the record is not what"):
        summarize(run.path)
