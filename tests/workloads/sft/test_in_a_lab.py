"""Fine-tuning in runs on this machine, with workers that are really killed: held-out loss falls, nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.testing import Lab, alone, assert_exactly_once, lab, preload
from shoal_data.chat.prepare import ChatOptions, prepare
from shoal_workloads.hf.export import export
from tests.support.conversations import conversations, write_jsonl
from tests.support.finetuning import load, one_by_one, summed_loss, write_model

preload("shoal_workloads.sft", "transformers.models.llama.modeling_llama", "torch._dynamo", "torch.distributed.fsdp")

HELD_OUT = conversations(16, seed=2)


def section(folder: Path, rows: int, **settings: Any) -> dict[str, Any]:
    """The job's `workload` for a model and conversations that are made in `folder`."""
    model = write_model(folder / "model")
    for name, some in (("train", conversations(rows, seed=1)), ("heldout", HELD_OUT)):
        write_jsonl(folder / f"{name}.jsonl", some)
        prepare([str(folder / f"{name}.jsonl")], str(model), str(folder / name), ChatOptions(128))
    return {
        "path": "shoal_workloads.sft:Sft",
        "model": str(model),
        "data": str(folder / "train"),
        "heldout": str(folder / "heldout"),
        "global_batch": 8,
        "lr": 1e-2,
        **settings,
    }


def held_out(run: Lab) -> list[float]:
    """The held-out loss of each evaluation."""
    return [event["heldout_loss"] for event in run.events("evaluation")]


def base_loss(model: Path) -> float:
    """Held-out loss of the model as it stands in its folder, by transformers alone, one conversation at a time."""
    of = load(model).eval()
    with torch.no_grad():
        found = [summed_loss(of, *one) for one in one_by_one(model, HELD_OUT)]
    return sum(float(total) for total, _ in found) / sum(count for _, count in found)


def test_a_worker_is_killed_and_the_held_out_loss_falls(tmp_path: Path) -> None:
    """2 cells of 2 workers, 20 steps; every loss is what one process comes to that trains alone.

    transformers finds the held-out loss of the first evaluation in the folder that the run began from, and that of the
    last one in the folder that is exported.
    """
    steps, workload = 20, section(tmp_path, 120)
    nodes = dict.fromkeys(("a", "b", "c"), 2)
    told = {"audit": {"samples": True}, "evaluation": {"enabled": True}}
    with lab(tmp_path / "run", nodes, steps=steps, workload=workload, **told) as run:
        run.full(steps=3, spares=2)
        run.kill(run.members(cell=1)[0])
        summary = run.finished()
    assert (summary["status"], summary["steps_lost"], len(run.events("death"))) == ("done", 0, 1), run.story()
    assert_exactly_once(run.path, steps)
    assert [line["loss"] for line in run.steps()] == pytest.approx(alone(workload, steps).losses, rel=1e-5)
    before, after = held_out(run)
    assert before == pytest.approx(base_loss(tmp_path / "model"), rel=1e-5)
    assert after < before
    export(run.path / f"checkpoints/step-{steps:08d}", tmp_path / "tuned", dtype="fp32")
    assert base_loss(tmp_path / "tuned") == pytest.approx(after, rel=1e-5)


@pytest.mark.long
def test_200_steps_with_two_deaths_beat_the_base_model(tmp_path: Path) -> None:
    """It learns the task: the held-out loss more than halves."""
    steps, workload = 200, section(tmp_path, 2000, lr=3e-3, warmup_steps=10, schedule="cosine", schedule_steps=200)
    nodes = dict.fromkeys(("a", "b", "c"), 2)
    told = {"audit": {"samples": True}, "evaluation": {"enabled": True, "every": 50}}
    with lab(tmp_path / "run", nodes, steps=steps, workload=workload, **told) as run:
        for step, cell in ((40, 1), (120, 0)):
            run.full(steps=step, spares=2)
            run.kill(run.members(cell=cell)[0])
        summary = run.finished()
    assert (summary["status"], summary["steps_lost"], len(run.events("death"))) == ("done", 0, 2), run.story()
    assert_exactly_once(run.path, steps)
    base, found = base_loss(tmp_path / "model"), held_out(run)
    assert found[0] == pytest.approx(base, rel=1e-5)
    assert found[-1] < base / 2, found
