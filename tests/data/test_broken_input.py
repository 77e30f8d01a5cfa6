"""Broken input is quarantined by file, row and cause, and nothing else is lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from shoal_data.build.tokenize import Recipe, TokenizeOptions, tokenize
from shoal_data.errors import InputError
from shoal_data.inspection import documents
from shoal_data.reader import Corpus

pytestmark = pytest.mark.usefixtures("serial")


def run(tokenizer: Path, folder: Path, *, strict: bool = False) -> tuple[dict[tuple[str, int], int], dict[object, str]]:
    """What was kept, {(file, row): bytes}, and what was quarantined, {(file, row): cause}."""
    out = folder / "corpus"
    tokenize([str(folder / "in" / "*")], tokenizer, out, TokenizeOptions(recipe=Recipe(strict=strict)))
    kept = {(Path(row["file"]).name, row["row"]): row["bytes"] for row, _ in documents(Corpus.open(out))}
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    return kept, {(Path(line["file"]).name, line["row"]): line["cause"] for line in lines}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder of good and bad files."""
    folder = tmp_path / "in"
    folder.mkdir()
    good = [json.dumps({"text": f"document {number}"}) for number in range(4)]
    (folder / "good.jsonl").write_text("\n".join(good) + "\n")
    bad = [good[0], "{not json", '{"other": 1}', '{"text": ""}', '{"text": null}', good[1]]
    (folder / "bad.jsonl").write_text("\n".join(bad))
    (folder / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n{"text": "fine"}\n')
    packed = gzip.compress(("\n".join([good[0]] * 50_000)).encode())
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "whole.jsonl.gz").write_bytes(gzip.compress(b'{"text": "from gzip"}'))
    (folder / "whole.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "from zstd"}\n'))
    (folder / "plain.txt").write_text("plain text\n")
    (folder / "bytes.txt").write_bytes(b"ok then \xff not")
    (folder / "empty.txt").write_text("")
    pq.write_table(pa.table({"text": ["one", None, "", "two"]}), folder / "nulls.parquet")
    pq.write_table(pa.table({"body": ["x"]}), folder / "column.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), folder / "numbers.parquet")
    raw = pa.array([b"fine", b"\xc3\x28"], pa.binary())
    pq.write_table(pa.table({"text": raw}), folder / "binary.parquet")
    content = (folder / "nulls.parquet").read_bytes()
    (folder / "footer.parquet").write_bytes(content[:-9] + b"garbage!!")
    return tmp_path


def test_each_kind_of_damage_is_named_and_the_rest_is_kept(tokenizer: Path, inputs: Path) -> None:
    kept, quarantined = run(tokenizer, inputs)
    assert "unreadable JSON line" in quarantined["bad.jsonl", 1]
    assert "no text in field" in quarantined["bad.jsonl", 2]
    assert quarantined["bad.jsonl", 3] == "empty document"
    assert "no text in field" in quarantined["bad.jsonl", 4]
    assert quarantined["latin.jsonl", 0] == "invalid UTF-8 at byte 3"
    assert any("truncated or corrupt" in cause for (file, _), cause in quarantined.items() if file == "cut.jsonl.gz")
    assert quarantined["bytes.txt", 0] == "invalid UTF-8 at byte 8"
    assert quarantined["nulls.parquet", 1] == "null text"
    assert quarantined["nulls.parquet", 2] == "empty document"
    assert "no column 'text'" in quarantined["column.parquet", None]
    assert "unreadable Parquet" in quarantined["footer.parquet", None]
    assert quarantined["binary.parquet", 1] == "invalid UTF-8 at byte 0"
    expected = {
        *(("good.jsonl", row) for row in range(4)),
        ("bad.jsonl", 0),
        ("bad.jsonl", 5),
        ("latin.jsonl", 1),
        ("whole.jsonl.gz", 0),
        ("whole.jsonl.zst", 0),
        ("plain.txt", 0),
        ("nulls.parquet", 0),
        ("nulls.parquet", 3),
        ("binary.parquet", 0),
        ("numbers.parquet", 0),
        ("numbers.parquet", 1),
    }
    assert {key for key in kept if key[0] != "cut.jsonl.gz"} == expected
    whole_lines = [row for file, row in kept if file == "cut.jsonl.gz"]
    assert sorted(whole_lines) == list(range(len(whole_lines)))
    assert len(whole_lines) > 1000
    assert set(kept).isdisjoint(quarantined)


def test_strict_makes_it_an_error_that_names_the_file(tokenizer: Path, inputs: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)in/.*--strict"):
        run(tokenizer, inputs, strict=True)


def test_a_document_of_many_parts(tokenizer: Path, tmp_path: Path) -> None:
    """One document much larger than a part goes through whole."""
    (tmp_path / "in").mkdir()
    text = "The quick brown fox jumps over the lazy dog. " * 400_000
    (tmp_path / "in" / "large.jsonl").write_text(json.dumps({"text": text}) + '\n{"text": "small"}\n')
    kept, quarantined = run(tokenizer, tmp_path)
    assert kept == {("large.jsonl", 0): len(text), ("large.jsonl", 1): 5}
    assert quarantined == {}
