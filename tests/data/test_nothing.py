"""No job succeeds with nothing, and what is missing, changed or damaged is told or made again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal_core.errors import UserError
from shoal_data.bpe import train as training
from shoal_data.bpe.train import TrainOptions, train
from shoal_data.jobs import session
from shoal_data.reading.manifest import Manifest
from shoal_data.reading.reader import Corpus
from shoal_data.reading.verify import verify
from shoal_data.sources.parts import Part, plan_parts
from shoal_data.tokenizer.encoder import Encoder, load_encoder
from shoal_data.writing import tokenize as tokenizing
from shoal_data.writing.finish import deal_weights
from shoal_data.writing.options import Recipe, TokenizeOptions
from shoal_data.writing.tokenize import tokenize

WATCHED = """
import sys, threading
late = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            late.append(name)
sys.meta_path.insert(0, Watch())
from shoal_data.writing.options import Recipe, TokenizeOptions
from shoal_data.writing.tokenize import tokenize
from shoal_data.bpe.train import TrainOptions, train
folder = sys.argv[1]
path = train([folder + "/in/*"], folder + "/tok", TrainOptions(300, part_bytes=500))
recipe = Recipe(deduplicate=True, shuffle=True, bos=True, fim_rate=0.5, split_rate=0.5)
tokenize([folder + "/in/*"], path, folder + "/corpus", TokenizeOptions(part_bytes=500, recipe=recipe))
assert not late, late
"""


def write(folder: Path, name: str, texts: list[str], column: str = "text") -> Path:
    """JSONL with one field; the folder is made."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder of two sources with some text."""
    write(tmp_path / "in", "a.jsonl", [f"document number {number}, some words" for number in range(60)])
    write(tmp_path / "in", "b.jsonl", [f"another {number}, other words" for number in range(60)])
    return tmp_path / "in"


def build(inputs: Path, tokenizer: Path, column: str = "text", part_bytes: int = 900, **recipe: object) -> Manifest:
    options = TokenizeOptions(column, part_bytes, Recipe(**recipe))  # type: ignore[arg-type]
    return tokenize([str(inputs / "*")], tokenizer, inputs.parent / "corpus", options)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_nothing_is_imported_by_threads(inputs: Path) -> None:
    """Two threads that import one library at once can wait for each other for ever."""
    (inputs / "plain.txt").write_text("plain text, once\n")
    (inputs / "broken.jsonl").write_text('{"text": "x"}\n{broken\n')
    pq.write_table(pa.table({"text": ["one", None, ""], "lang": ["en", "de", None]}), inputs / "c.parquet")
    subprocess.run([sys.executable, "-c", WATCHED, str(inputs.parent)], check=True)


def test_a_corpus_of_nothing_is_refused_with_the_cause_and_gives_way(inputs: Path, tokenizer: Path) -> None:
    with pytest.raises(UserError, match=r"no document could be read: no text in field 'body': 120 rows in 2 files"):
        build(inputs, tokenizer, column="body")
    assert not (inputs.parent / "corpus" / "manifest.json").exists()
    assert build(inputs, tokenizer).totals["documents"] == 120  # the same --out, with the column mended


def test_a_column_that_no_parquet_file_has_is_refused_before_work_starts(inputs: Path, tokenizer: Path) -> None:
    for path in inputs.iterdir():
        path.unlink()
    pq.write_table(pa.table({"Text": ["one"], "id": [1]}), inputs / "a.parquet")
    for run in (build, lambda inputs, _: train([str(inputs / "*")], inputs.parent / "corpus", TrainOptions(300))):
        with pytest.raises(UserError, match=r"--column 'text': no input file has it \(they have Text, id\)"):
            run(inputs, tokenizer)
        assert not (inputs.parent / "corpus").exists()
    pq.write_table(pa.table({"text": ["one"]}), inputs / "b.parquet")
    assert build(inputs, tokenizer).totals["documents"] == 1  # one file that has it is enough


@pytest.mark.parametrize("kind", ["broken", "empty", "duplicates"])
def test_the_weight_of_a_source_of_nothing_is_dealt_to_the_others(
    inputs: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    write(inputs, "c.jsonl", ["other"] * 30)
    broken = {"broken": [""] * 40, "empty": [], "duplicates": ["other"] * 40}[kind]
    write(inputs, "d.jsonl", broken)
    manifest = build(inputs, tokenizer, deduplicate=True, weights={"a": 1, "b": 2, "c": 1, "d": 4})
    assert manifest.sources == ["a", "b", "c"]
    assert manifest.weights == {"a": 0.25, "b": 0.5, "c": 0.25}
    said = capsys.readouterr().err
    assert "nothing is left of source 'd'" in said
    assert "its weight of 0.5 is dealt to the others" in said
    reader = Corpus.open(inputs.parent / "corpus").reader(2, 0)
    assert reader.read([0, 32_769, 65_535, 10**6])[0].shape == (4, 3)


def test_weights_are_dealt_in_their_ratio() -> None:
    assert deal_weights({"a": 3, "b": 1, "c": 4}, ["a", "b"]) == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1 << 63}, "--seed"),
        ({"fim_rate": float("nan")}, "--fim-rate nan"),
        ({"split_rate": -0.1}, "--split-rate"),
        ({"weights": {"a": float("nan"), "b": 1}}, "--mixture a=nan"),
        ({"weights": {"a": float("inf"), "b": 1}}, "--mixture a=inf"),
        ({"weights": {"a": 0, "b": 1}}, "--mixture a=0"),
        ({"weights": {"a": 1e308, "b": 1e308}}, "--mixture: the weights"),
        ({"weights": {"a": 1, "z": 1}}, "--mixture: b, z"),
        ({"part_bytes": -1}, "--part-bytes -1"),
        ({"part_bytes": 1 << 50}, "--part-bytes"),
    ],
)
def test_numbers_out_of_range_are_refused_before_work_starts(
    inputs: Path, tokenizer: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        build(inputs, tokenizer, **change)  # type: ignore[arg-type]
    assert not (inputs.parent / "corpus").exists()


def test_an_input_that_changed_since_is_named(inputs: Path, tokenizer: Path) -> None:
    build(inputs, tokenizer)
    before = (inputs / "a.jsonl").read_text()
    (inputs / "a.jsonl").write_text(before.replace("document", "DOCUMENT"))
    os.utime(inputs / "a.jsonl", (10**9, 10**9))
    with pytest.raises(UserError, match=r"in/a\.jsonl: changed since it was begun"):
        build(inputs, tokenizer)
    with pytest.raises(UserError, match=r"--shuffle was left out, is given"):
        build(inputs, tokenizer, shuffle=True)


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "blocks.crc32",
        "token_bytes.npy",
        "tokenizer.json",
        "quarantine.jsonl",
        "job/000001.json",
        "shards/000001.arrow",
    ],
)
def test_what_is_lost_or_cut_short_is_made_again(inputs: Path, tokenizer: Path, name: str) -> None:
    write(inputs, "c.jsonl", ["", "x"])
    build(inputs, tokenizer)
    corpus = inputs.parent / "corpus"
    before = digests(corpus)
    path = corpus / name
    for damage in (path.unlink, lambda: path.write_bytes(path.read_bytes()[:-9]), lambda: path.write_bytes(b"")):
        damage()
        build(inputs, tokenizer)
        assert digests(corpus) == before
        verify(corpus, full=True)


def test_a_tokenizer_of_nothing_is_refused_with_the_cause(inputs: Path) -> None:
    out = inputs.parent / "tok"
    glob = [str(inputs / "*")]
    for options, words in (
        (TrainOptions(300, column="body"), "nothing to learn from: no text in field 'body': 120 rows in 2 files"),
        (TrainOptions(300, min_word_count=1000), "--min-word-count 1000: every word is rarer"),
        (TrainOptions(300, min_frequency=1000), "occur 1000 times"),
    ):
        with pytest.raises(UserError, match=words):
            train(glob, out, options)
        assert not (out / "tokenizer.json").exists()
    write(inputs, "a.jsonl", [])
    write(inputs, "b.jsonl", [])
    with pytest.raises(UserError, match="all files are empty"):
        train(glob, inputs.parent / "other", TrainOptions(300))


def test_a_smaller_vocabulary_and_what_was_left_out_are_told(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(inputs, "c.jsonl", ["", "x"])
    path = train([str(inputs / "*")], inputs.parent / "tok", TrainOptions(5000))
    size = len(json.loads(path.read_bytes())["model"]["vocab"])
    said = capsys.readouterr().err
    assert f"the vocabulary has {size:,} entries where 5,000 were asked for" in said
    assert "empty document: 1 row in 1 file" in said


def test_a_tokenizer_goes_into_a_folder_of_its_own(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = inputs.parent / "model"
    out.mkdir()
    (out / "tokenizer.json").write_text("precious")
    with pytest.raises(UserError, match="other things in it"):
        train([str(inputs / "*")], out, TrainOptions(300))
    assert [path.name for path in out.iterdir()] == ["tokenizer.json"]
    (out / "tokenizer.json").unlink()
    path = train([str(inputs / "*")], out, TrainOptions(300))
    monkeypatch.delattr(training, "_train")  # what is finished is not done again
    assert train([str(inputs / "*")], out, TrainOptions(300)) == path
    with pytest.raises(UserError, match="--vocab-size was 300, is 301"):
        train([str(inputs / "*")], out, TrainOptions(301))


def test_planning_and_loading_the_tokenizer_go_on_while_ray_starts(
    inputs: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's start ends only once both are done: before or after them, it would end never."""
    loaded = threading.Event()
    events: list[str] = []

    def start(cpus: int | None) -> None:
        assert loaded.wait(60)
        events.append("ray")

    def plan(*given: object, **more: object) -> list[Part]:
        events.append("plan")
        return plan_parts(*given, **more)  # type: ignore[arg-type]

    def load(path: str | Path) -> Encoder:
        events.append("tokenizer")
        encoder = load_encoder(path)
        loaded.set()
        return encoder

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(session, "_start", start)
    monkeypatch.setattr(tokenizing, "plan_parts", plan)
    monkeypatch.setattr(tokenizing, "load_encoder", load)
    assert build(inputs, tokenizer).totals["documents"] == 120
    assert events == ["plan", "tokenizer", "ray"]
