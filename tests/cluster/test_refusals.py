"""What a user gets wrong is said in one message, with exit code 2, before anything starts: no cluster needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from shoal.cli.main import app, run

Refused = Callable[..., None]

SHOAL = str(Path(sys.executable).with_name("shoal"))


def shoal(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    env = {**os.environ, "RAY_ADDRESS": "", "XDG_STATE_HOME": "/nonexistent", "COLUMNS": "200"}
    return subprocess.run([SHOAL, *map(str, words)], env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny corpus, built by the commands themselves."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("to be or not to be, that is the question\n" * 400)
    steps = [
        ["tokenizer-train", "--input", folder / "text.txt", "--vocab-size", "300", "--out", folder / "tokenizer"],
        ["tokenize", "--input", folder / "text.txt", "--tokenizer", folder / "tokenizer" / "tokenizer.json"],
    ]
    steps[1] += ["--out", folder / "corpus"]
    for step in steps:
        done = CliRunner().invoke(app, ["data", *map(str, step)])
        assert done.exit_code == 0, done.output
    return folder / "corpus"


def job(folder: Path, corpus: Path) -> Path:
    data = {"corpus": str(corpus), "seq_len": 64}
    model = {"preset": "demo"}
    workload = {"path": "shoal_workloads.pretrain:Pretrain", "model": model, "data": data, "parallel": {"ep": 2}}
    workload |= {"batch": {"global_batch": 16, "micro_batch": 4}}
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({"steps": 4, "storage": str(folder / "runs"), "workload": workload}))
    return file


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command's entry point here: importing torch and Ray once is enough for all refusals."""

    def check(*words: str | Path, say: str) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "")
        monkeypatch.setenv("XDG_STATE_HOME", "/nonexistent")
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run()
        said = capsys.readouterr().err
        assert (ended.value.code, say in said) == (2, True), said
        assert "remedy: " in said
        assert "Traceback" not in said

    return check


def test_a_good_job_passes_the_check(corpus: Path, tmp_path: Path) -> None:
    result = shoal("train", job(tmp_path, corpus), "--check")
    assert result.returncode == 0, result.stderr
    assert "parameters 3,203,456" in result.stdout


def test_a_missing_corpus(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    refused("train", job(tmp_path, tmp_path / "nowhere"), say=str(tmp_path / "nowhere"))


def test_a_shard_with_a_wrong_checksum(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    (shard,) = copy.glob("shards/*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    refused("train", job(tmp_path, copy), say=shard.name)


@pytest.mark.parametrize(
    ("override", "say"),
    [
        ("stpes=4", "unknown key 'stpes', did you mean 'steps'"),
        ("workload.model.preset=demmo", "demmo"),
        ("workload.batch.global_bach=4", "did you mean 'workload.batch.global_batch'"),
        ("workload.batch.global_batch=12", "a global batch of 12 samples"),
        ("workload.parallel.ep=3", "3 does not divide the 2 workers"),
        ("workload.model.vocab_size=128", "vocab_size"),
        ("workload.guard.action=roll_back", "snapshots.every"),
        ("workload.path=nowhere:X", "workload.path: 'nowhere:X' cannot be loaded"),
    ],
)
def test_a_bad_setting(corpus: Path, tmp_path: Path, refused: Refused, override: str, say: str) -> None:
    refused("train", job(tmp_path, corpus), override, say=say)


def test_no_cluster(corpus: Path, tmp_path: Path) -> None:
    result = shoal("train", job(tmp_path, corpus))
    assert (result.returncode, "there is no Ray cluster" in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_not_there(refused: Refused) -> None:
    refused("status", "no-such-run", "--storage", "nowhere", say="storage: nowhere: there is no such folder")
    refused("chaos", "no-such-run", "--storage", "nowhere", say="storage: nowhere: there is no such folder")


def test_a_command_that_is_started_without_standard_streams_has_silent_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after `2>&-`, where Python has None in their place, and asking that whether it is a terminal is an error."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, "argv", ["shoal", "data", "verify", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2
    assert None not in (sys.stdin, sys.stdout, sys.stderr)
