"""Broken input is quarantined by file, row and cause, and nothing else is lost."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer

from shoal_core.errors import UserError
from shoal_data.bpe.train import TrainOptions, train
from shoal_data.reading.inspection import documents
from shoal_data.reading.reader import Corpus
from shoal_data.writing.options import Recipe, TokenizeOptions
from shoal_data.writing.tokenize import tokenize


def run(tokenizer: Path, folder: Path, *, strict: bool = False) -> tuple[dict[tuple[str, int], int], dict[object, str]]:
    """What was kept, {(file, row): bytes}, and what was quarantined, {(file, row): cause}."""
    out = folder / "corpus"
    tokenize([str(folder / "in" / "*")], tokenizer, out, TokenizeOptions(recipe=Recipe(strict=strict)))
    kept = {(Path(row["file"]).name, row["row"]): row["bytes"] for row, _ in documents(Corpus.open(out))}
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert all(sorted(line) == ["cause", "file", "row", "rows"] for line in lines)
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
    lines = (json.dumps({"text": hashlib.sha256(b"%d" % row).hexdigest()}) for row in range(20_000))
    packed = zstandard.compress("\n".join(lines).encode())  # of several blocks, since hashes hardly compress
    (folder / "cut.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    (folder / "garbage.jsonl.zst").write_bytes(zstandard.compress(f"{good[0]}\n".encode()) + b"no zstd")
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
    for name in ("cut.jsonl.gz", "cut.jsonl.zst", "garbage.jsonl.zst"):
        assert [cause[:20] for (file, _), cause in quarantined.items() if file == name] == ["truncated or corrupt"]
    assert quarantined["bytes.txt", 0] == "invalid UTF-8 at byte 8"
    assert quarantined["nulls.parquet", 1] == "null text"
    assert quarantined["nulls.parquet", 2] == "empty document"
    assert "no column 'text'" in quarantined["column.parquet", None]
    assert "unreadable Parquet" in quarantined["footer.parquet", None]
    assert quarantined["binary.parquet", 1] == "invalid UTF-8 at byte 0"
    assert "numbers.parquet" in {file for file, _ in quarantined}
    expected = {
        *(("good.jsonl", row) for row in range(4)),
        ("bad.jsonl", 0),
        ("bad.jsonl", 5),
        ("latin.jsonl", 1),
        ("garbage.jsonl.zst", 0),
        ("whole.jsonl.gz", 0),
        ("whole.jsonl.zst", 0),
        ("plain.txt", 0),
        ("nulls.parquet", 0),
        ("nulls.parquet", 3),
        ("binary.parquet", 0),
    }
    assert {key for key in kept if not key[0].startswith("cut.")} == expected
    for name in ("cut.jsonl.gz", "cut.jsonl.zst"):
        whole_lines = [row for file, row in kept if file == name]
        assert sorted(whole_lines) == list(range(len(whole_lines)))
        assert 1000 < len(whole_lines) < 50_000
    assert set(kept).isdisjoint(quarantined)


def test_training_names_what_it_leaves_out(inputs: Path) -> None:
    path = train([str(inputs / "in" / "*")], inputs / "tok", TrainOptions(300))
    lines = [json.loads(line) for line in (inputs / "tok" / "quarantine.jsonl").read_text().splitlines()]
    found = {(Path(line["file"]).name, line["row"]): line["cause"] for line in lines}
    assert found["nulls.parquet", 1] == "null text"
    assert found["latin.jsonl", 0] == "invalid UTF-8 at byte 3"
    assert {name for name, _ in found} >= {"bad.jsonl", "cut.jsonl.gz", "bytes.txt", "column.parquet", "footer.parquet"}
    assert len(Tokenizer.from_file(str(path)).encode("document").ids) < len("document")


def test_strict_makes_it_an_error_that_names_the_file(tokenizer: Path, inputs: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)in/.*--strict"):
        run(tokenizer, inputs, strict=True)


def test_jsonl_is_read_in_stretches(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_data.sources.jsonl._STRETCH", 300)
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": "x" * (number % 150 + 1)}) for number in range(400)]
    lines[7] = "{not json"
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    kept, quarantined = run(tokenizer, tmp_path)
    assert kept == {("a.jsonl.gz", row): row % 150 + 1 for row in range(400) if row != 7}
    assert list(quarantined) == [("a.jsonl.gz", 7)]


@pytest.mark.long
def test_a_document_of_200_mb(tokenizer: Path, tmp_path: Path) -> None:
    """As JSONL, as text and as Parquet it goes through whole; broken, it is quarantined, and its neighbours stay."""
    (tmp_path / "in").mkdir()
    text = "".join(f"Line {number} of a very long document.\n" for number in range(6_000_000))[: 200 * 10**6]
    lines = [
        json.dumps({"text": text}),
        '{"text": "small"}',
        '{"text": "' + text[:-1].replace("\n", " ") + "\\",
        '{"text": "last"}',
    ]
    (tmp_path / "in" / "large.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "in" / "large.txt").write_text(text)
    (tmp_path / "in" / "latin.txt").write_bytes(text.encode() + b"\xe9")
    pq.write_table(pa.table({"text": pa.array([text, "beside"], pa.large_string())}), tmp_path / "in" / "large.parquet")
    kept, quarantined = run(tokenizer, tmp_path)
    size = len(text)
    assert kept == {
        ("large.jsonl", 0): size,
        ("large.jsonl", 1): 5,
        ("large.jsonl", 3): 4,
        ("large.txt", 0): size,
        ("large.parquet", 0): size,
        ("large.parquet", 1): 6,
    }
    assert "unreadable JSON line" in quarantined["large.jsonl", 2]
    assert quarantined["latin.txt", 0] == f"invalid UTF-8 at byte {size}"
    assert len(quarantined) == 2


def test_a_document_of_many_parts(tokenizer: Path, tmp_path: Path) -> None:
    """One document much larger than a part goes through whole."""
    (tmp_path / "in").mkdir()
    text = "The quick brown fox jumps over the lazy dog. " * 400_000
    (tmp_path / "in" / "large.jsonl").write_text(json.dumps({"text": text}) + '\n{"text": "small"}\n')
    kept, quarantined = run(tokenizer, tmp_path)
    assert kept == {("large.jsonl", 0): len(text), ("large.jsonl", 1): 5}
    assert quarantined == {}
