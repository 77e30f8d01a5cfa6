"""The figures at the end, the audit of samples, the sentences and the masking of secrets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.record import layout
from shoal.record.audit import committed_ids_audit
from shoal.record.masking import MASK, flat_masked, mask_text
from shoal.record.rundir import RunDir
from shoal.record.sentences import sentence
from shoal.record.summary import gpu_figures, sessions, summarize
from shoal_core.errors import UserError


def a_step(step: int, time: float, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "time": time, "loss": 4.0 - step, "lm_loss": 3.0, "mtp_loss": 3.5, "grad_norm": 1.0, "lr": 1e-3,
        "tokens": 100, "samples": [step * 4, step * 4 + 4], "cells": 2, "generation": 0, "seconds": 1.0, **more,
    }  # fmt: skip


def two_sessions(storage: Path) -> RunDir:
    """Steps 0 and 1, a break of 1000 s, steps 2 and 3 with a recovery of 3 s."""
    run = RunDir.create(storage, "job", {}, resume=False)
    run.append_event("run_started", run_id="job", steps=4, cells=2, workers_per_cell=2, time=100.0)
    run.append_event("evaluation", step=0, bpb=3.0, time=101.0)
    run.append_step(a_step(0, 103.0))
    run.append_step(a_step(1, 104.0))
    run.append_event("run_ended", status="stopped", time=105.0)
    run.append_event("run_started", run_id="job", steps=4, cells=2, workers_per_cell=2, resumed_from=2, time=1105.0)
    run.append_step(a_step(2, 1108.0))
    run.append_event("death", actor="job/cell0/stage0/shard0@n1", node="n1", time=1109.0)
    run.append_event("node_lost", node="n1", actors=["job/cell0/stage0/shard0@n1"], time=1109.5)
    run.append_step(a_step(3, 1111.0, seconds=3.0))
    run.append_event("recovery", rung="heal", next_commit=2.0, steps_lost=0, phases={}, time=1111.0)
    run.append_event("evaluation", step=4, bpb=2.0, time=1111.5)
    return run


def test_run_json_is_computed_from_the_record(tmp_path: Path) -> None:
    run = two_sessions(tmp_path)
    assert summarize(run.path)["status"] == "running"
    run.append_event("run_ended", status="done", reason="all committed", time=1112.0)
    (run.path / layout.MLFLOW).write_text('{"mlflow_run_id": "abc"}')
    found = summarize(run.path)
    # Sessions last 5 s and 7 s; steps take 1 + 1 s (102..104) and 1 + 3 s (1107..1111).
    expected = {
        "run_id": "job", "status": "done", "reason": "all committed", "steps": 4, "tokens": 400, "loss": 1.0,
        "loss_first": 4.0, "bpb": 2.0, "bpb_before": 3.0, "deaths": 1, "nodes_lost": 1, "recoveries": 1,
        "steps_lost": 0, "next_commit_median": 2.0, "samples_repeated": 0, "samples_skipped": 0,
        "sessions": 2, "seconds": 12.0, "training_seconds": 6.0, "step_seconds_median": 1.0,
        "mlflow_run_id": "abc", "checkpoints": 0,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert found["tokens_per_second"] == pytest.approx(400 / 6)
    assert found["recovery_events"][0]["rung"] == "heal"


def test_steps_are_lost_once_whoever_was_recovered_then(tmp_path: Path) -> None:
    """No recovery is under way, or two are: what counts is what was taken back."""
    run = RunDir.create(tmp_path, "job", {}, resume=False)
    for index, (lost, recoveries) in enumerate([(3, 0), (4, 2)]):
        run.append_event("rewound", to=0, lost=lost, time=float(index))
        for _ in range(recoveries):
            run.append_event("recovery", rung="restore", steps_lost=lost, time=index + 0.5)
    assert summarize(run.path)["steps_lost"] == 7


def test_what_gpus_did_is_told_where_there_were_any() -> None:
    steps = [{"mfu": 0.1 * n, "peak_memory_bytes": 5.0 - n} for n in (1, 2, 4)] + [{"loss": 1.0}]
    assert gpu_figures(steps) == {"mfu": 0.2, "peak_memory_bytes": 4.0}
    assert gpu_figures([{"loss": 1.0}]) == {}


def test_a_run_without_a_start_has_no_session() -> None:
    assert sessions([], []) == []


def test_an_empty_record_has_a_summary(tmp_path: Path) -> None:
    found = summarize(RunDir.create(tmp_path, "job", {}, resume=False).path)
    assert found["steps"] == found["tokens"] == found["samples_skipped"] == 0
    assert found["loss"] is found["bpb"] is found["tokens_per_second"] is None


def test_one_evaluation_has_no_before(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "job", {}, resume=False)
    run.append_event("evaluation", step=0, bpb=3.0)
    assert (summarize(run.path)["bpb"], summarize(run.path)["bpb_before"]) == (3.0, None)


def test_a_held_out_loss_has_its_own_name(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "job", {}, resume=False)
    for step, loss in ((0, 3.0), (4, 2.0)):
        run.append_event("evaluation", step=step, heldout_loss=loss)
    found = summarize(run.path)
    assert (found["bpb"], found["heldout_loss"], found["heldout_loss_before"]) == (None, 2.0, 3.0)


@given(ids=st.lists(st.lists(st.integers(0, 13), max_size=6), min_size=1, max_size=4))
def test_the_audit_counts_as_plain_python_does(tmp_path_factory: pytest.TempPathFactory, ids: list[list[int]]) -> None:
    run = RunDir.create(tmp_path_factory.mktemp("runs"), "job", {}, resume=False)
    for step, mine in enumerate(ids):
        half = len(mine) // 2
        run.append_samples({"step": step, "cell": 0, "worker": "a", "ids": mine[:half]})
        run.append_samples({"step": step, "cell": 1, "worker": "b", "ids": mine[half:]})
        run.append_step(a_step(step, float(step), samples=[step * 3, step * 3 + 3]))
    run.append_samples({"step": len(ids), "cell": 0, "worker": "a", "ids": [0, 1, 2]})  # not committed
    everything = [one for mine in ids for one in mine]
    wanted = set(range(3 * len(ids)))
    found = committed_ids_audit(run.path)
    assert found.source == "samples"
    assert (found.steps, found.expected, found.seen) == (len(ids), len(wanted), len(everything))
    assert found.repeated == len(everything) - len(set(everything))
    assert found.skipped == len(wanted - set(everything))
    assert found.outside == len(set(everything) - wanted)
    run.close()


def test_without_samples_the_ranges_are_audited(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "job", {}, resume=False)
    for step, (first, last) in enumerate([(0, 4), (3, 8), (10, 12)]):
        run.append_step(a_step(step, float(step), samples=[first, last]))
    found = committed_ids_audit(run.path)
    assert (found.source, found.expected, found.repeated, found.skipped) == ("ranges", 12, 1, 2)


def test_ranges_of_any_length_are_audited(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "job", {}, resume=False)
    for step, (first, last) in enumerate([(0, 10**12), (10**12, 2 * 10**12), (3, 5)]):
        run.append_step(a_step(step, float(step), samples=[first, last]))
    found = committed_ids_audit(run.path)
    assert (found.expected, found.seen, found.repeated, found.skipped) == (2 * 10**12, 2 * 10**12 + 2, 2, 0)


@pytest.mark.parametrize("by", [-3600.0, 3600.0])
@pytest.mark.parametrize("regrouped", [False, True])
def test_figures_do_not_hang_on_a_clock_that_is_set(tmp_path: Path, by: float, regrouped: bool) -> None:
    run = RunDir.create(tmp_path, "job", {}, resume=False)
    run.append_event("run_started", run_id="job", steps=6, cells=2, workers_per_cell=2, time=5000.0)
    for step in range(6):  # a second each, but the clock is set by an hour
        now, took = (5001.0 + step + by, 1.0) if step > 3 else (5001.0 + step, 1.0)
        seconds = took + by if step == 4 else took
        generation = int(regrouped and step >= 2)
        run.append_step(a_step(step, now, seconds=seconds, worker_seconds=took, generation=generation))
    run.append_event("run_started", run_id="job", steps=6, cells=2, workers_per_cell=2, resumed_from=6, time=1500.0)
    found = summarize(run.path)
    assert found["training_seconds"] == pytest.approx(6.0)
    assert found["sessions"] == 2


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        (layout.STEPS, b"\0" * 512, "steps.jsonl:3 is not JSON (it holds NUL bytes"),
        (layout.STEPS, b'{"step": 2, \0', "steps.jsonl:3 is not JSON (it holds NUL bytes"),
        (layout.STEPS, "{}".encode("utf-16"), "steps.jsonl:3 is not JSON"),
        (layout.STEPS, b"[" * 100_000, "steps.jsonl:3 is not JSON"),
        (layout.STEPS, b'{"step": 2}', "does not say which samples"),
        (layout.STEPS, b'{"step": "2"}', "has no step number"),
        (layout.STEPS, json.dumps(a_step(1, 9.0)).encode(), "steps.jsonl:3 tells of step 1 after step 1"),
        (layout.STEPS, b'{"step": 2, "samples": [8, 99999999999999999999999]}', "does not say which samples"),
        (layout.STEPS, b'{"step": 2, "samples": [8, 12], "time": "abc"}', "has no 'time' that is a number"),
        (layout.EVENTS, b'{"time": 1}', "does not say what kind"),
        (layout.EVENTS, b'{"kind": "death"}', "has no 'time' that is a number"),
        (layout.EVENTS, b'{"kind": "death", "time": NaN}', "has no 'time' that is a number"),
        (layout.EVENTS, b'{"kind": "rewound", "time": 1, "lost": "x"}', "a field of the record is not what"),
        (layout.SAMPLES, b'{"step": 1, "ids": [99999999999999999999999]}', "does not say which samples"),
        (layout.MLFLOW, b"[", "mlflow.json is not JSON"),
    ],
)
def test_whatever_is_damaged_is_one_sentence(tmp_path: Path, file: str, line: bytes, told: str) -> None:
    run = RunDir.create(tmp_path, "job", {}, resume=False)
    for step in range(2):
        run.append_samples({"step": step, "cell": 0, "worker": "a", "ids": [0, 1, 2, 3]})
        run.append_step(a_step(step, float(step)))
    run.append_event("run_started", run_id="job", steps=6, cells=2, workers_per_cell=2, time=0.0)
    with open(run.path / file, "ab") as damaged:
        damaged.write(line + b"\n")
    with pytest.raises(UserError, match=re.escape(told)):
        summarize(run.path)


def test_a_file_that_is_a_folder_is_one_sentence(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "job", {}, resume=False)
    (run.path / layout.STEPS).unlink()
    (run.path / layout.STEPS).mkdir()
    with pytest.raises(UserError, match=r"steps\.jsonl cannot be read"):
        summarize(run.path)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"kind": "config_changed", "changes": {"a": 5}}, "An event 'config_changed' is on record with fields that"),
        ({"kind": "experts_placed", "before": "x", "after": [1]}, "An event 'experts_placed' is on record"),
        ({"kind": "node_lost", "node": "n\x1b[2J\u202e\ud800"}, "Node n\\x1b[2J\\u202e\\ud800 is lost."),
        ({"kind": "run_ended", "status": "failed", "reason": "no mysql://u:HUNTER2@h\nstep 9"},
         "The run ended (failed): no mysql://***@h\\nstep 9."),
    ],
)  # fmt: skip
def test_a_sentence_is_fit_to_be_shown_whatever_the_event_holds(event: dict[str, Any], told: str) -> None:
    found = sentence({"time": 0.0, **event})
    assert found is not None
    assert found.startswith(told)
    assert found.isprintable()


def test_every_kind_of_event_has_a_sentence_even_with_nothing_known() -> None:
    for kind, fields in layout.EVENT_FIELDS.items():
        told = sentence({"time": 0.0, "kind": kind, **dict.fromkeys(fields)})
        assert told
        assert told.endswith(".")
        assert "\n" not in told
    assert sentence({"time": 0.0, "kind": "something else"}) is None


@pytest.mark.parametrize(("event", "told"), [
    ({"kind": "run_started", "run_id": "a", "steps": 1, "cells": 2, "workers_per_cell": 1},
     "Run a started: 1 step on 2 cells of 1 worker."),
    ({"kind": "run_started", "run_id": "a", "steps": 9, "cells": 2, "workers_per_cell": 2, "resumed_from": 3},
     "Run a goes on from step 3 with 2 cells of 2 workers."),
    ({"kind": "death", "actor": "a/cell1/stage0/shard0@n3", "node": "n3", "cell": 1, "step": 7, "how": "SIGKILL"},
     "Worker cell1/stage0/shard0@n3 of cell 1 died on n3 during step 7 (SIGKILL)."),
    ({"kind": "death", "actor": "a/spare0@n3", "node": "n3", "cell": None},
     "Worker spare0@n3, a spare, died on n3."),
    ({"kind": "node_lost", "node": "n3", "actors": ["a/x", "a/y"]}, "Node n3 is lost, and with it x and y."),
    ({"kind": "decision", "rung": "shrink", "cells": [0, 1], "reason": "no spare"},
     "Decision: go on without cells 0 and 1: no spare."),
    ({"kind": "rewound", "to": 4, "lost": 3}, "3 committed steps taken back: the run goes on from step 4."),
    ({"kind": "generation", "generation": 2, "step": 9, "cells": {"0": []}},
     "Generation 2 stands at step 9 with 1 cell."),
    ({"kind": "generation", "generation": 3, "step": 9, "live": 2, "since": 2, "changed": {}, "gone": []},
     "Generation 3 stands at step 9 with 2 cells."),
    ({"kind": "recovery", "rung": "heal", "nodes": ["n3"], "next_commit": 0.31, "full_strength": 0.5, "steps_lost": 0},
     "Recovered (heal) after the loss of n3: the next step committed 0.31 s after the first sign, "
     "full strength after 0.50 s; no step was lost."),
    ({"kind": "recovery", "sentence": "All well."}, "All well."),
    ({"kind": "evaluation", "step": 4, "bpb": 1.5}, "Held-out text at step 4: 1.5000 bits a byte."),
    ({"kind": "evaluation", "step": 4, "heldout_loss": 1.5}, "Held-out loss at step 4: 1.5000."),
    ({"kind": "evaluation", "step": 4, "accuracy": 0.5, "bpb": None}, "Evaluation at step 4: accuracy 0.5000."),
    ({"kind": "evaluation", "step": 4, "bpb": None}, "Evaluation at step 4: nothing was measured."),
    ({"kind": "run_ended", "status": "done"}, "The run ended (done)."),
])  # fmt: skip
def test_sentences(event: dict[str, Any], told: str) -> None:
    assert sentence({"time": 0.0, **event}) == told


@pytest.mark.parametrize(
    "key",
    ["token", "hf_token", "apiKey", "aws.secret_access_key", "password", "storage_credentials", "HF_TOKEN", "api-key"],
)
def test_credentials_are_masked(key: str) -> None:
    assert flat_masked({"a": {key: "hunter2"}}) == {f"a.{key}": MASK}
    assert flat_masked({"a": {key: {"value": "hunter2"}}}) == {f"a.{key}": MASK}
    assert flat_masked({"a": [{key: "hunter2"}]}) == {"a": [{key: MASK}]}


@pytest.mark.parametrize(
    "key", ["tokens", "token_shards", "tokenizer", "max_tokens", "key", "secretary", "slot_resource"]
)
def test_other_settings_are_not(key: str) -> None:
    assert flat_masked({"a": {key: "plain"}}) == {f"a.{key}": "plain"}


def test_passwords_in_uris_are_masked() -> None:
    assert mask_text("at http://me:pw@host:5000/x now") == "at http://***@host:5000/x now"
    assert mask_text("s3://bucket/key?X-Amz-Signature=abc&part=1") == "s3://bucket/key?X-Amz-Signature=***&part=1"
    assert mask_text("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert flat_masked({"a": {}, "b": None, "c": ["http://u:p@h"]}) == {"a": {}, "b": None, "c": ["http://***@h"]}
