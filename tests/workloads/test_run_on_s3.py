"""A run whose corpora lie on S3 is the run whose corpora lie in a folder: trained, evaluated, exported, used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal_workloads.checkpoint import Checkpoint
from tests.support.checkpoints import write_checkpoint
from tests.support.corpora import write_corpus
from tests.support.s3_server import account


@pytest.fixture
def there(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A corpus in a folder, and the same on S3."""
    folder = write_corpus(tmp_path / "corpus")
    account(monkeypatch, s3_endpoint, tmp_path)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="corpora")
    for path in folder.rglob("*"):
        if path.is_file():
            s3.put_object(Bucket="corpora", Key=f"a run/{path.relative_to(folder)}", Body=path.read_bytes())
    return folder, "s3://corpora/a run"


def printed(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_same_run(there: tuple[Path, str], tmp_path: Path) -> None:
    made: list[tuple[Path, str]] = []
    for number, corpus in enumerate(map(str, there)):
        section: dict[str, Any] = {
            "model": {"preset": "laptop-1m", "vocab_size": 512, "n_layers": 2, "d_model": 32},
            "data": {"corpus": corpus, "heldout": corpus, "seq_len": 32},
            "batch": {"global_batch": 8, "micro_batch": 8},
            "schedule": {"budget": 30 * 256, "lr": 1e-2, "warmup_steps": 2},
        }
        made.append((write_checkpoint(section, tmp_path / str(number), steps=4), corpus))
    ours, theirs = (Checkpoint(checkpoint).weights() for checkpoint, _ in made)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    figures = [json.loads(printed("eval", "bpb", run, "--data", corpus, "--samples", 8)) for run, corpus in made]
    assert figures[0] == figures[1]
    assert figures[0]["samples"] == 8
    texts = {printed("generate", checkpoint, "def ", "--tokens", 5) for checkpoint, _ in made}
    assert len(texts) == 1
    exported = [tmp_path / f"hf{number}" for number in range(2)]
    for (checkpoint, _), out in zip(made, exported, strict=True):
        printed("export", checkpoint, out)
    for name in ("tokenizer.json", "model.safetensors"):
        assert len({(out / name).read_bytes() for out in exported}) == 1
