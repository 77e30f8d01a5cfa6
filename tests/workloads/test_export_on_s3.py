"""`shoal export`, `import` and `eval` with everything in a bucket: checkpoint, Hugging Face's files, the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
import yaml
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.moving import copy
from shoal_core.ckpt.whole import Checkpoint as Stored
from shoal_core.errors import UserError
from shoal_core.store import Store, open_store, send
from shoal_workloads.checkpoint import Checkpoint
from shoal_workloads.hf.export import export
from shoal_workloads.hf.load import import_checkpoint
from tests.support.checkpoints import write_checkpoint
from tests.support.corpora import write_corpus
from tests.support.s3_server import account

HERE = "s3://models/a b/100% é"


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    corpus = str(write_corpus(tmp_path_factory.mktemp("corpus") / "c"))
    return {
        "model": {"preset": "laptop-1m", "vocab_size": 512, "n_layers": 2, "d_model": 32, "mtp_depth": 0},
        "data": {"corpus": corpus, "heldout": corpus, "seq_len": 32},
        "batch": {"global_batch": 8, "micro_batch": 8},
        "schedule": {"budget": 30 * 256, "lr": 1e-2, "warmup_steps": 2, "gamma": 0.01},
    }


@pytest.fixture(scope="module")
def there(section: dict[str, Any], s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a checkpoint in a bucket."""
    folder = tmp_path_factory.mktemp("run")
    local = write_checkpoint(section, folder, steps=1)
    with pytest.MonkeyPatch.context() as patch:
        account(patch, s3_endpoint, folder)
        boto3.client("s3").create_bucket(Bucket="models")
        address = f"{HERE}/run/checkpoints/{local.name}"
        copy(Stored.open(Folder.at(local)), Folder.at(address))
        yield address


def test_a_bucket_is_all_that_is_needed(there: str, section: dict[str, Any], tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"workload": section}))
    start = f"{HERE}/new/checkpoints/step-00000000"

    def said(*words: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    assert said("export", there, f"{HERE}/hf", "--dtype", "fp32")["out"] == f"{HERE}/hf"
    names = sorted(entry.name for entry in open_store(f"{HERE}/hf").list())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert said("import", f"{HERE}/hf", str(job), start)["out"] == start
    ours, back = Checkpoint(there), Checkpoint(start)
    assert back.steps == 0
    before, after = ours.weights(), back.weights()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    corpus = section["data"]["corpus"]
    first, second = (said("eval", "bpb", where, "--data", corpus, "--samples", "4") for where in (there, start))
    assert first["bpb"] == second["bpb"]


def test_what_is_there_is_kept_and_faults_are_told_by_the_address(
    there: str, section: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"{HERE}/run: exists"):
        export(there, f"{HERE}/run")
    with pytest.raises(UserError, match=rf"{there}: exists"):
        import_checkpoint(tmp_path, section, there)
    with pytest.raises(UserError, match=rf"{HERE}/nothing/config.json: cannot be read"):
        import_checkpoint(f"{HERE}/nothing", section, f"{HERE}/never")
    assert not list(open_store(f"{HERE}/never").list())


def test_of_files_that_are_not_all_taken_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = tmp_path / "files", open_store(tmp_path / "store")
    folder.mkdir()
    for name in ("config.json", "a", "z"):
        (folder / name).write_text(name)
    real, order = store.writer, []

    def writer(name: str) -> Any:
        order.append(name)
        if name == "config.json":
            raise UserError("the disk is full")
        return real(name)

    monkeypatch.setattr(store, "writer", writer)
    with pytest.raises(UserError, match="full"):
        send(folder, store, last="config.json")
    assert order == ["a", "z", "config.json"]
    assert _names(store) == []
    monkeypatch.undo()
    assert send(folder, store, last="config.json") == len("config.jsonaz")
    assert _names(store) == ["a", "config.json", "z"]


def _names(store: Store) -> list[str]:
    return sorted(entry.name for entry in store.list())
