"""Where `--resume` goes on from, and what it refuses: with real checkpoints, in this one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.config import Job
from shoal.preflight import Preflight, preflight
from shoal.record import read
from shoal.record.audit import committed_ids_audit
from shoal.record.rundir import RunDir
from shoal_core.ckpt import alone
from shoal_core.ckpt.folder import Folder, name_of
from shoal_core.ckpt.marker import MARKER
from shoal_core.errors import UserError
from shoal_core.loading import make_workload, own_settings
from shoal_core.workload import ORIGIN, Workload

WORKLOAD = {"path": "shoal_workloads.synthetic:Synthetic", "parameters": 8, "global_batch": 16}


def job(storage: Path, steps: int = 100, run_id: str = "r", **workload: Any) -> Job:
    fields = {"run_id": run_id, "storage": storage, "steps": steps, "cells": 1, "workers_per_cell": 1}
    return Job.model_validate({**fields, "workload": {**WORKLOAD, **workload}})


def trained(ready: Preflight, until: int, saves: int = 10, **about: Any) -> Path:
    """The run directory after a session from where `ready` begins to `until` committed steps; a checkpoint at each
    multiple of `saves`."""
    job, workload = ready.job, make_workload(ready.job.workload)
    Path(job.place).mkdir(exist_ok=True)
    run = RunDir.create(job.storage, str(job.run_id), job.model_dump(mode="json"), True)
    run.append_event("run_started", run_id=job.run_id)
    run.truncate_steps(ready.start)
    for step in range(ready.start, until):
        figures = dict.fromkeys(("loss", "lm_loss", "mtp_loss", "grad_norm", "lr", "tokens", "seconds"), 1.0)
        run.append_step({"step": step, "samples": list(workload.samples(step)), "cells": 1, "generation": 0, **figures})
        if (step + 1) % saves == 0:
            save(run.path, workload, job, step + 1, **about)
    run.close()
    return run.path


def save(rundir: Path, kind: Workload, job: Job, steps: int, **about: Any) -> Path:
    """A checkpoint as a worker writes it."""
    final = rundir / "checkpoints" / name_of(steps)
    marker = {"steps": steps, "run_id": job.run_id, "workload": job.workload, "samples": kind.samples(steps)[0]}
    alone.write(Folder.at(final), kind.build(0).state_dict(), {**marker, **about})
    return final


def start(storage: Path, until: int, **about: Any) -> Path:
    storage.mkdir(parents=True, exist_ok=True)
    return trained(preflight(job(storage), resume=False), until, **about)


def flip(path: Path) -> None:
    part = next(path.glob("*.safetensors"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    run = start(tmp_path, 35)
    assert preflight(job(tmp_path), resume=True).start == 30
    assert preflight(job(tmp_path), resume=True).notes == []
    flip(run / "checkpoints" / "step-00000030")
    (run / "checkpoints" / "step-00000020" / MARKER).unlink()
    ready = preflight(job(tmp_path), resume=True)
    assert ready.start == 10
    assert [folder.name for folder, _ in ready.passed] == ["step-00000030"], "without a marker one is half-written"
    assert "differs from what was committed" in ready.notes[0]
    flip(run / "checkpoints" / "step-00000010")
    with pytest.raises(UserError, match=r"no checkpoint of the run can be gone on from(.|\n)*train from the beginning"):
        preflight(job(tmp_path), resume=True)


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    start(tmp_path, 5)
    ready = preflight(job(tmp_path), resume=True)
    assert (ready.start, ready.job.workload[ORIGIN]["start"]) == (0, None)


def test_an_imported_checkpoint_of_no_steps_is_one(tmp_path: Path) -> None:
    wanted = job(tmp_path)
    save(tmp_path / "r", make_workload(wanted.workload), wanted, 0, workload=wanted.workload)
    ready = preflight(wanted, resume=True)
    assert (ready.start, ready.job.workload[ORIGIN]["start"]) == (0, 0)
    assert ready.notes == []
    flip(tmp_path / "r" / "checkpoints" / "step-00000000")
    with pytest.raises(UserError, match="can be gone on from"):
        preflight(wanted, resume=True)


def test_what_is_not_this_runs_or_not_of_its_record_is_passed_over(tmp_path: Path) -> None:
    run, wanted = start(tmp_path, 20), job(tmp_path)
    workload = make_workload(wanted.workload)
    save(run, workload, wanted, 30)
    assert "record ends at step 20" in preflight(wanted, resume=True).notes[0]
    save(run, workload, wanted, 15, run_id="other")
    (run / "checkpoints" / "step-00000020").rename(run / "checkpoints" / "step-00000018")
    notes = preflight(wanted, resume=True).notes
    for word, note in zip(("ends at", "of 20 steps", "of run other"), notes, strict=True):
        assert word in note
    assert preflight(wanted, resume=True).start == 10


def test_a_whole_run_may_be_copied_under_another_name(tmp_path: Path) -> None:
    start(tmp_path, 20).rename(tmp_path / "copy")
    assert preflight(job(tmp_path, run_id="copy"), resume=True).start == 20


def test_what_was_saved_after_a_step_that_is_no_number_is_the_last_choice(tmp_path: Path) -> None:
    start(tmp_path, 20)
    run = trained(preflight(job(tmp_path), resume=True), 30, finite=False)
    ready = preflight(job(tmp_path), resume=True)
    assert ready.start == 20
    assert "not finite" in ready.notes[0]
    for steps in (10, 20):
        flip(run / "checkpoints" / f"step-{steps:08d}")
    assert preflight(job(tmp_path), resume=True).start == 30


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": 16}, r"momentum is \[8\] float32 there, \[16\] float32 in the job; vector is"),
        ({"global_batch": 16, "parameters": 4}, r"\[4\] float32 in the job"),
    ],
)
def test_another_model_is_refused_with_the_difference(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    start(tmp_path, 10)
    with pytest.raises(UserError, match=words):
        preflight(job(tmp_path, **change), resume=True)


def test_batches_may_change_and_no_sample_is_lost(tmp_path: Path) -> None:
    """Up, down, twice the same, and from a checkpoint before where the session before ended."""
    run = start(tmp_path, 10)
    for begins, until, batch in ((10, 20, 32), (20, 30, 8), (30, 40, 16), (40, 55, 16), (50, 60, 4)):
        ready = preflight(job(tmp_path, global_batch=batch), resume=True)
        assert ready.start == begins
        trained(ready, until)
    audit = committed_ids_audit(run)
    assert (audit.steps, audit.repeated, audit.skipped, audit.outside) == (60, 0, 0, 0)
    assert [record["samples"][0] for record in read.steps(run)][::10] == [0, 160, 480, 560, 720, 880]


def test_nothing_moves_while_batches_stay_as_they_are(tmp_path: Path) -> None:
    start(tmp_path, 10)
    changed = preflight(job(tmp_path, global_batch=32), resume=True)
    assert changed.notes == ["batches change: step 10 goes on from sample 160"]
    trained(changed, 20)
    again = preflight(job(tmp_path, global_batch=32), resume=True)
    assert (again.start, again.notes) == (20, [])
    assert (again.job.workload[ORIGIN]["steps"], again.job.workload[ORIGIN]["samples"]) == (10, 160)


def test_a_workload_that_cannot_go_on_from_samples_is_refused_another_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal_workloads.synthetic import Synthetic

    start(tmp_path, 10)
    monkeypatch.delattr(Synthetic, "go_on")
    assert preflight(job(tmp_path), resume=True).start == 10
    with pytest.raises(UserError, match="consumed 160 samples, by the job's batches it would be 320"):
        preflight(job(tmp_path, global_batch=32), resume=True)


def test_other_data_are_refused_unless_they_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal_workloads.synthetic import Synthetic

    state = Synthetic.identity(make_workload(WORKLOAD))["state"]  # type: ignore[arg-type]
    data: dict[str, str | int | None] = {"corpus": "ab12", "seq_len": 64, "heldout": None}
    monkeypatch.setattr(Synthetic, "identity", lambda _: {"state": state, "data": dict(data)})
    start(tmp_path, 10)
    data["heldout"] = "held"
    assert preflight(job(tmp_path), resume=True).notes == []
    data |= {"corpus": "cd34", "seq_len": 32}
    with pytest.raises(UserError, match=r"corpus was ab12, is cd34; seq_len was 64, is 32(.|\n)*--allow-change data"):
        preflight(job(tmp_path), resume=True)
    with pytest.raises(UserError, match="`data` is all that may change"):
        preflight(job(tmp_path), resume=True, allow={"model"})
    ready = preflight(job(tmp_path), resume=True, allow={"data"})
    assert "data change at step 10" in ready.notes[0]
    trained(ready, 20)
    assert preflight(job(tmp_path), resume=True).start == 20


def test_what_an_older_checkpoint_does_not_say_is_told(tmp_path: Path) -> None:
    run, wanted = start(tmp_path, 5), job(tmp_path)
    (run / "steps.jsonl").unlink()
    (run / "events.jsonl").unlink()
    save(run, make_workload(wanted.workload), wanted, 10, workload=WORKLOAD, samples=None)
    notes = preflight(wanted, resume=True).notes
    assert len(notes) == 2
    assert all("does not say" in note for note in notes)


def test_the_recorded_config_is_a_job_file(tmp_path: Path) -> None:
    """Its origin is that of an earlier session, and counts for nothing."""
    ready = preflight(job(tmp_path), resume=False)
    again = job(tmp_path, **{**ready.job.workload, ORIGIN: {"start": 3, "steps": 3, "samples": 1, "data": {}}})
    assert preflight(again, resume=False).job.workload[ORIGIN]["samples"] == 0
    assert own_settings(again.workload) == {"parameters": 8, "global_batch": 16}


def test_tensors_of_the_synthetic_state_are_those_it_names() -> None:
    workload = make_workload(WORKLOAD)
    held = {name: tuple(tensor.shape) for name, tensor in workload.build(0).state_dict().items()}
    identity: Any = workload.identity()
    assert {name: shape for name, (shape, _) in identity["state"].items()} == held
    assert isinstance(workload.build(0).tensors()[0], torch.Tensor)
