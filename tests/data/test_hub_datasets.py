"""`--dataset ORG/NAME`: Parquet on the Hub is read as such, anything else streamed: the rows that `datasets` gives."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal_core.errors import UserError
from shoal_data.sources.hub_dataset import dataset_input
from tests.support.hub import COMMIT, hub

READ = """
import json, sys
import datasets
from shoal_core.errors import UserError
from shoal_data.sources.documents import read_piece
from shoal_data.sources.parts import plan_parts
from shoal_data.writing.options import TokenizeOptions
from shoal_data.writing.tokenize import tokenize

asked = json.loads(sys.argv[1])
found, lost, said, formats = [], [], [], set()
try:
    for part in plan_parts([asked["input"]], asked["column"], 1):
        for piece in part.pieces:
            formats.add((piece.format, part.source))
            for read in read_piece(piece, asked["column"], lost):
                found += zip([read.path] * len(read.row), read.row.tolist(), read.text.to_pylist())
    if asked["out"]:
        tokenize([asked["input"]], asked["tokenizer"], asked["out"], TokenizeOptions(asked["column"], part_bytes=1))
except UserError as error:
    said = [type(error).__name__, str(error)]
rows = []
if asked["theirs"]:
    rows = [row["text"] for row in datasets.load_dataset("org/name", split="train", streaming=True)]
print(json.dumps([found, [[entry.row, entry.cause] for entry in lost], sorted(formats), said, rows]))
"""


def parquet(rows: list[str]) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"text": rows, "n": range(len(rows))}), content, row_group_size=5)
    return content.getvalue()


PARQUET = {
    "data/train-00000-of-00002.parquet": parquet([f"row {number}" for number in range(12)]),
    "data/train-00001-of-00002.parquet": parquet([f"more {number}" for number in range(7)]),
    "data/test-00000-of-00001.parquet": parquet(["other"]),
}
CSV = {
    "train/a.csv": b'text,n\nhello,1\n"wor\nld",2\n' + b"".join(f"line {n},3\n".encode() for n in range(2500)),
    "train/b.csv": b"text,n\nzwei,1\n",
    "test/c.csv": b"text,n\nx,1\n",
}


def ask(where: str, tmp_path: Path, url: str, column: str = "text", **more: Any) -> Any:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        **{"HF_ENDPOINT": where, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"},
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    asked = {"input": url, "column": column, "out": "", "tokenizer": "", "theirs": False, **more}
    argv = [sys.executable, "-c", READ, json.dumps(asked)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.long
@pytest.mark.parametrize(("files", "kind"), [(PARQUET, "parquet"), (CSV, "streamed")])
def test_a_data_set_of_the_hub_has_the_rows_that_datasets_gives(
    files: dict[str, bytes], kind: str, tmp_path: Path, tokenizer: Path
) -> None:
    url = dataset_input("org/name", None, "train", None)
    out = {"out": str(tmp_path / "corpus"), "tokenizer": str(tokenizer)}
    with hub(files) as where:
        found, lost, formats, said, theirs = ask(where, tmp_path, url, theirs=True, **out)
        assert (lost, said, formats) == ([], [], [[kind, "name"]])
        assert [text for _, _, text in found] == theirs
        assert len(theirs) == {"parquet": 19, "streamed": 2503}[kind]
        assert all(COMMIT in path for path, _, _ in found)
        before = contents(tmp_path / "corpus")
        next((tmp_path / "corpus" / "shards").glob("*1.arrow")).unlink()
        (tmp_path / "corpus" / "manifest.json").unlink()
        ask(where, tmp_path, url, **out)
    assert contents(tmp_path / "corpus") == before


@pytest.mark.long
def test_what_is_wrong_with_a_data_set_is_told(tmp_path: Path) -> None:
    with hub(CSV) as where:
        *_, said, _ = ask(where, tmp_path, "dataset://org/name")
        assert "--split is left out" in said[1]
        assert "train, test" in said[1] or "test, train" in said[1]
        *_, said, _ = ask(where, tmp_path, "dataset://org/name?split=dev")
        assert "no split 'dev'" in said[1]
        *_, said, _ = ask(where, tmp_path, "dataset://org/name?split=train&config=de")
        assert "--config" in said[1]
        assert "default" in said[1]
        *_, said, _ = ask(where, tmp_path, "dataset://org/name?split=train", "Text")
        assert "did you mean 'text'" in said[1]
        *_, said, _ = ask(where, tmp_path, "dataset://org/name?split=train", "n")
        assert "'n' is int64, not text" in said[1]


@pytest.mark.long
def test_a_hub_that_fails_is_no_broken_data_set(tmp_path: Path) -> None:
    with hub(PARQUET, {"data/train-00001-of-00002.parquet"}) as where:
        *_, said, _ = ask(where, tmp_path, "dataset://org/name?split=train")
    assert said[0] == "StoreError"


@pytest.mark.parametrize("name", ["", "a/b/c", "https://huggingface.co/x", "a b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="ORG/NAME"):
        dataset_input(name, None, "train", None)


def test_options_travel_with_the_name() -> None:
    assert dataset_input("w=o/n", "de", "train", "v1") == "w=dataset://o/n?config=de&split=train&revision=v1"
