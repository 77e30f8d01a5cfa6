"""A corpus gives back every document it was made from, whatever the recipe did to it, and comes out the same twice."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shoal_core.errors import UserError
from shoal_data.reading.inspection import document_lengths, documents, show, write_documents
from shoal_data.reading.reader import Corpus
from shoal_data.reading.verify import verify
from shoal_data.tokenizer.encoder import load_encoder
from shoal_data.writing.options import Recipe, TokenizeOptions
from shoal_data.writing.recipe import splits_of
from shoal_data.writing.tokenize import tokenize

EVERYTHING = Recipe(seed=3, shuffle=True, bos=True, fim_rate=0.5, split_rate=0.5)


def originals(raw: Path) -> dict[tuple[str, int], str]:
    texts = {str(file): pq.read_table(file)["text"].to_pylist() for file in raw.glob("*.parquet")}
    return {(file, row): text for file, rows in texts.items() for row, text in enumerate(rows)}


def written(corpus: Path) -> list[dict[str, object]]:
    out = io.BytesIO()
    write_documents(corpus, out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def build(raw: Path, tokenizer: Path, out: Path, recipe: Recipe, part_bytes: int = 30_000) -> Path:
    tokenize([str(raw / "*.parquet")], tokenizer, out, TokenizeOptions(part_bytes=part_bytes, recipe=recipe))
    return out


@pytest.mark.parametrize("recipe", [Recipe(), EVERYTHING, Recipe(weights={"code": 3, "web": 1})])
def test_documents_come_back_as_they_went_in(raw: Path, tokenizer: Path, tmp_path: Path, recipe: Recipe) -> None:
    rows = written(build(raw, tokenizer, tmp_path / "c", recipe))
    assert len(rows) == len(originals(raw))
    assert {(row["file"], row["row"]): row["text"] for row in rows} == originals(raw)
    verify(tmp_path / "c", full=True)


def test_two_builds_are_the_same_byte_for_byte(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    first = digests(build(raw, tokenizer, tmp_path / "a", EVERYTHING))
    assert digests(build(raw, tokenizer, tmp_path / "b", EVERYTHING)) == first
    other = digests(build(raw, tokenizer, tmp_path / "d", Recipe(seed=4, shuffle=True)))
    assert other["shards/000000.arrow"] != first["shards/000000.arrow"]


def test_what_was_lost_is_made_again_and_what_stands_is_left(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    corpus = build(raw, tokenizer, tmp_path / "c", EVERYTHING)
    before = digests(corpus)
    times = {path: path.stat().st_mtime_ns for path in corpus.rglob("*") if path.is_file()}
    build(raw, tokenizer, corpus, EVERYTHING)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (corpus / "shards" / "000001.arrow").unlink()
    (corpus / "job" / "000002.json").unlink()
    (corpus / "job" / "000001.json").write_text("[" * 100_000)
    (corpus / "shards" / "000003.arrow.77.1.tmp").write_bytes(b"half")
    build(raw, tokenizer, corpus, EVERYTHING)
    assert digests(corpus) == before
    kept = corpus / "shards" / "000000.arrow"
    assert kept.stat().st_mtime_ns == times[kept]


def test_another_job_is_not_mixed_in(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    corpus = build(raw, tokenizer, tmp_path / "c", Recipe())
    with pytest.raises(UserError, match="another --out"):
        build(raw, tokenizer, corpus, Recipe(seed=1, shuffle=True))


def test_the_stream_is_what_the_recipe_says(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tokenizer)
    corpus = Corpus.open(build(raw, tokenizer, tmp_path / "c", EVERYTHING))
    special = corpus.manifest.special
    fim = 0
    for row, ids in documents(corpus):
        assert ids[0] == special["bos"]
        assert ids[-1] == special["eos"]
        inner = [special["fim_begin"], special["fim_hole"], special["fim_end"]]
        where = [np.flatnonzero(ids == token).tolist() for token in inner]
        if row["fim"]:
            fim += 1
            assert where[0] == [1]
            assert 1 < where[1][0] < where[2][0]
        else:
            assert where == [[], [], []]
        assert sum(len(encoder.tokens[token]) for token in ids) == row["bytes"]
    assert 0.35 < fim / corpus.manifest.totals["documents"] < 0.65


def test_joined_punctuation_is_split_at_the_rate_asked_for(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    def joined(recipe: Recipe, name: str) -> int:
        corpus = Corpus.open(build(raw, tokenizer, tmp_path / name, recipe))
        ids = np.concatenate([corpus.store.tokens(at, 0, int(n)) for at, n in enumerate(corpus.manifest.shards.tokens)])
        return int((splits_of(load_encoder(tokenizer)).length[ids] > 0).sum())

    whole = joined(Recipe(), "none")
    assert whole > 1000
    assert joined(Recipe(split_rate=1.0), "all") == 0
    assert abs(joined(Recipe(split_rate=0.25), "some") / whole - 0.75) < 0.05


def test_duplicates_are_left_out_once_each(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    corpus = build(raw, tokenizer, tmp_path / "c", Recipe(deduplicate=True))
    rows = written(corpus)
    distinct = set(originals(raw).values())
    assert sorted(str(row["text"]) for row in rows) == sorted(distinct)
    totals = Corpus.open(corpus).manifest.totals
    assert totals["duplicates"] == len(originals(raw)) - len(distinct)


def test_byte_lengths_of_samples_add_up(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(build(raw, tokenizer, tmp_path / "c", EVERYTHING))
    reader = corpus.reader(64, seed=5)
    tokens, size = reader.read(range(reader.samples))
    stream = np.concatenate([corpus.store.tokens(at, 0, int(n)) for at, n in enumerate(corpus.manifest.shards.tokens)])
    covered = stream[1 : reader.samples * 64 + 1]
    assert size.sum() == corpus.token_bytes[covered].sum()
    assert corpus.token_bytes[stream].sum() == corpus.manifest.totals["bytes"]
    order = np.lexsort(tokens.T[::-1])
    straight = np.stack([stream[at * 64 : at * 64 + 65] for at in range(reader.samples)])
    assert np.array_equal(tokens[order], straight[np.lexsort(straight.T[::-1])])


def test_resuming_far_on_reads_what_an_undisturbed_run_reads(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    build(raw, tokenizer, tmp_path / "c", Recipe(weights={"code": 1, "web": 1}))
    one, other = (Corpus.open(tmp_path / "c").reader(32, seed=9) for _ in range(2))
    far = range(10**12, 10**12 + 40)
    whole, _ = one.read(far)
    assert np.array_equal(np.stack([other.read([at])[0][0] for at in far]), whole)


def test_a_damaged_corpus_is_named(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    corpus = build(raw, tokenizer, tmp_path / "c", Recipe())
    shard = corpus / "shards" / "000001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    verify(corpus, full=False)
    with pytest.raises(UserError, match=r"000001\.arrow: SHA-256"):
        verify(corpus, full=True)
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"000001\.arrow: \d+ bytes"):
        verify(corpus, full=False)
    shard.unlink()
    with pytest.raises(UserError, match=r"000001\.arrow: this shard is missing"):
        Corpus.open(corpus).reader(64, 0).read(range(200))
    (corpus / "manifest.json").unlink()
    with pytest.raises(UserError, match="no corpus here"):
        Corpus.open(corpus)


def test_a_corpus_can_be_looked_at(
    raw: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = build(raw, tokenizer, tmp_path / "c", Recipe())
    show(corpus, 2, tmp_path / "look.png", lambda text: text.replace("lang", "LANG"))
    assert "LANG web" in capsys.readouterr().out
    show(corpus, 2, tmp_path / "look.png")
    said = capsys.readouterr().out
    assert said.count("---") >= 2
    assert "source code" in said
    assert "lang web" in said
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    opened = Corpus.open(corpus)
    assert len(document_lengths(opened)) == opened.manifest.totals["documents"]
    assert document_lengths(opened).sum() == opened.tokens
