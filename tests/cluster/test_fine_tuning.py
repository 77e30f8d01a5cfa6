"""The example of fine-tuning as its users run it: conversations in, a Hugging Face folder out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.conversations import conversations, write_jsonl
from tests.support.finetuning import load, one_by_one, summed_loss, write_model

pytestmark = [pytest.mark.cluster, pytest.mark.long]
EXAMPLE = Path(__file__).parents[2] / "docs/examples/fine_tuning.py"


def loss_of(folder: Path, rows: list[dict[str, object]]) -> float:
    model = load(folder).eval()
    with torch.no_grad():
        found = [summed_loss(model, *one) for one in one_by_one(folder, rows)]
    return sum(float(total) for total, _ in found) / sum(count for _, count in found)


def test_a_folder_becomes_a_fine_tuned_one(tmp_path: Path) -> None:
    """Files are named as they lie in the folder that the script is run in."""
    heldout = conversations(8, seed=2)
    write_model(tmp_path / "base")
    write_jsonl(tmp_path / "train.jsonl", conversations(200, seed=1))
    write_jsonl(tmp_path / "heldout.jsonl", heldout)
    told = subprocess.run(
        [sys.executable, str(EXAMPLE), "base", "train.jsonl", "heldout.jsonl", "out"],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert loss_of(tmp_path / "out/model", heldout) < 0.9 * loss_of(tmp_path / "base", heldout)
