"""`shoal eval bpb --data` with text: the same figures as with a corpus that `tokenizers` made of that text."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal_core.errors import UserError
from tests.support.checkpoints import write_checkpoint
from tests.support.corpora import write_corpus

TEXTS = [
    (Path(sysconfig.get_paths()["stdlib"]) / name).read_text() for name in ("heapq.py", "bisect.py", "textwrap.py")
]
TABLE = pa.table({"text": TEXTS, "page": [{"lines": text.split("\n")} for text in TEXTS]})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c")


@pytest.fixture(scope="module")
def checkpoint(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    section = {
        "model": {"preset": "laptop-1m", "vocab_size": 512, "n_layers": 2, "d_model": 32, "mtp_depth": 0},
        "data": {"corpus": str(corpus), "seq_len": 32},
        "batch": {"global_batch": 8, "micro_batch": 8},
        "schedule": {"budget": 30 * 256, "lr": 1e-2, "warmup_steps": 2, "gamma": 0.01},
    }
    return write_checkpoint(section, tmp_path_factory.mktemp("run"), steps=2)


def evaluate(checkpoint: Path, data: Path | str, *options: str) -> dict[str, Any]:
    argv = ["eval", "bpb", str(checkpoint), "--data", str(data), "--samples", "20", "--json", *options]
    done = CliRunner().invoke(app, argv)
    if done.exception:
        raise done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def as_jsonl(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def as_parquet(folder: Path) -> Path:
    pq.write_table(TABLE, folder / "a.parquet")
    return folder / "a.parquet"


def as_text(folder: Path) -> Path:
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    return folder / "*.txt"


def as_splits(folder: Path) -> Path:
    datasets.DatasetDict({"dev": datasets.Dataset(TABLE)}).save_to_disk(folder / "set")
    return folder / "set"


@pytest.mark.parametrize(
    ("make", "options"),
    [
        pytest.param(as_jsonl, (), marks=pytest.mark.long),
        pytest.param(as_text, (), marks=pytest.mark.long),
        pytest.param(as_parquet, (), marks=pytest.mark.long),
        (as_parquet, ("--column", "page.lines", "--join", r"\n")),
        (as_splits, ("--split", "dev")),
    ],
)
def test_text_gives_the_figures_of_its_corpus(
    checkpoint: Path, corpus: Path, tmp_path: Path, make: Callable[[Path], Path], options: tuple[str, ...]
) -> None:
    found, expected = evaluate(checkpoint, make(tmp_path), *options), evaluate(checkpoint, corpus)
    assert found == expected
    assert expected["samples"] == 20


def test_what_is_no_text_says_so(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for data, words in (
        (tmp_path / "nowhere", "no file matches"),
        (tmp_path / "folder", "folder"),
        (as_splits(tmp_path), "1 splits: dev"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(checkpoint, data)
    with pytest.raises(UserError, match="did you mean 'text'"):
        evaluate(checkpoint, as_parquet(tmp_path), "--column", "Text")
