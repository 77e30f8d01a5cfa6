"""A `ray.data.Dataset` becomes a corpus of its rows in the order of its blocks, however many those are."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal_core.errors import UserError
from shoal_data import build
from shoal_data.jobs import staging
from shoal_data.jobs.session import RaySession
from shoal_data.jobs.staging import stage
from shoal_data.reading.inspection import write_documents

TEXTS = [f"row {number} " + "äb" * (number % 7) for number in range(3000)]
TABLE = pa.table({"id": range(3000), "a": [{"lines": text.split(" ")} for text in TEXTS], "lang": ["de"] * 3000})


class Rows:
    """A table that gives its rows as a dataset of Ray does, and may stop on the way."""

    def __init__(self, table: pa.Table, stops: int = 1 << 60) -> None:
        self.table, self.stops, self.runs = table, stops, 0
        self.context = SimpleNamespace(execution_options=SimpleNamespace(preserve_order=False))

    def iter_batches(self, batch_size: int, batch_format: str) -> Iterator[pa.Table]:
        assert (batch_format, self.context.execution_options.preserve_order) == ("pyarrow", True)
        self.runs += 1
        for first in range(0, len(self.table), batch_size):
            if first >= self.stops:
                raise ConnectionError("the cluster is gone")
            yield self.table.slice(first, batch_size)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_are_staged_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_FILE", 10_000)
    stopped = Rows(TABLE, stops=2000)
    with pytest.raises(ConnectionError):
        stage(stopped, tmp_path / "s", "a.lines", " ")
    assert contents(tmp_path / "s")
    assert not stopped.context.execution_options.preserve_order
    whole = Rows(TABLE)
    for _ in range(2):
        assert stage(whole, tmp_path / "s", "a.lines", " ") == f"{tmp_path}/s/*.parquet"
    assert whole.runs == 1
    stage(Rows(TABLE), tmp_path / "t", "a.lines", " ")
    assert contents(tmp_path / "s") == contents(tmp_path / "t")
    files = sorted((tmp_path / "s").glob("*.parquet"))
    assert len(files) == 3
    rows = pa.concat_tables(pq.read_table(file) for file in files)
    assert [text.decode() for text in rows["text"].to_pylist()] == TEXTS
    assert set(rows["lang"].to_pylist()) == {"de"}
    noted = {"rows": 3000, "files": 3, "column": "a.lines", "join": " "}
    assert json.loads((tmp_path / "s" / "staged.json").read_text()) == noted
    for column, join in (("lang", " "), ("a.lines", "")):  # would be the corpus of another text
        with pytest.raises(UserError, match=r"text of column 'a\.lines' joined by ' '"):
            stage(whole, tmp_path / "s", column, join)
    (tmp_path / "s" / "staged.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        stage(whole, tmp_path / "s", "a.lines", " ")
    assert whole.runs == 1


def test_tags_that_are_the_text_are_no_tags(tmp_path: Path) -> None:
    """As of files, whose reader knows it."""
    stage(Rows(TABLE), tmp_path / "s", "lang", None)
    rows = pq.read_table(tmp_path / "s" / "rows-000000.parquet")
    assert (set(rows["text"].to_pylist()), set(rows["lang"].to_pylist())) == ({b"de"}, {None})


@pytest.mark.parametrize(
    ("column", "words"),
    [("line", "no column.*did you mean 'a.lines'"), ("a", "struct.*a.lines"), ("a.lines", "--join"), ("id", "int64")],
)
def test_a_column_that_is_no_text_is_told(tmp_path: Path, column: str, words: str) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        stage(Rows(TABLE), tmp_path / "s", column, None)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="mine"):
        stage(Rows(TABLE), tmp_path, "a.lines", " ")


@pytest.mark.long
@pytest.mark.cluster
def test_a_dataset_of_ray_becomes_the_same_corpus_from_any_blocks(tmp_path: Path, tokenizer: Path) -> None:
    import ray

    pq.write_table(TABLE, tmp_path / "rows.parquet", row_group_size=100)
    made: list[dict[str, bytes]] = []
    staged: list[dict[str, bytes]] = []
    with pytest.MonkeyPatch.context() as patch, RaySession(2) as session:
        patch.delenv("RAY_ADDRESS", raising=False)
        session.wait()
        for blocks in (1, 7):
            dataset = ray.data.read_parquet(str(tmp_path / "rows.parquet"), override_num_blocks=blocks)
            lines = dataset.map_batches(lambda batch: batch, batch_format="pyarrow")
            options = build.TokenizeOptions("a.lines", 4000, join=" ")
            folder = tmp_path / str(blocks)
            for _ in range(2):  # again: neither pipeline nor parts are
                manifest = build.tokenize(lines, tokenizer, folder / "corpus", options, name="mine")
            assert (manifest.totals["documents"], manifest.sources) == (3000, ["mine"])
            shards = contents(folder / "corpus" / "shards")  # which name the files that their rows lie in
            here, anywhere = str(folder).encode(), b"x" * len(str(folder))
            made.append({name: content.replace(here, anywhere) for name, content in shards.items()})
            staged.append(contents(folder / "corpus-text"))
    assert staged[0] == staged[1]
    assert made[0] == made[1]
    assert len(made[0]) == 3  # of 1,024 rows at most each
    said = io.BytesIO()
    write_documents(str(tmp_path / "1" / "corpus"), said)
    assert [json.loads(line)["text"] for line in said.getvalue().splitlines()] == TEXTS


def test_files_go_the_same_way(tmp_path: Path, tokenizer: Path, raw: Path) -> None:
    made: Any = build.tokenize(str(raw / "web-0.parquet"), tokenizer, tmp_path / "corpus")
    assert made.totals["documents"] == 200
