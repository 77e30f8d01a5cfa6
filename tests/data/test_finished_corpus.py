"""What `verify` says about a lost or damaged file of a finished corpus works: doing it gives the corpus back."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, normalizers
from tokenizers.models import BPE

from shoal_core.errors import StoreError, UserError
from shoal_data.reading.inspection import write_documents
from shoal_data.reading.reader import Corpus
from shoal_data.reading.verify import verify
from shoal_data.writing.options import TokenizeOptions
from shoal_data.writing.tokenize import tokenize

SMALL = ["blocks.crc32", "token_bytes.npy", "tokenizer.json", "quarantine.jsonl", "manifest.json"]


@pytest.fixture
def build(tokenizer: Path, tmp_path: Path) -> Callable[[], Path]:
    """Runs a job, the same each time; returns its corpus."""
    lines = [json.dumps({"text": f"Document {number} of a short corpus. " * 8}) for number in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "not json"]) + "\n")
    options = TokenizeOptions(part_bytes=4_000)

    def run() -> Path:
        tokenize([str(tmp_path / "*.jsonl")], tokenizer, tmp_path / "c", options)
        return tmp_path / "c"

    return run


def contents(corpus: Path) -> dict[str, bytes]:
    """Every file of the corpus but those of the job."""
    return {
        str(path.relative_to(corpus)): path.read_bytes()
        for path in corpus.rglob("*")
        if path.is_file() and "job" not in path.parts
    }


@pytest.mark.parametrize("damage", ["lost", "cut", "changed", "empty"])
def test_what_the_message_says_gives_the_file_back(build: Callable[[], Path], damage: str) -> None:
    corpus = build()
    whole = contents(corpus)
    for name in [*SMALL, Corpus.open(corpus).manifest.shards.file[1].decode()]:
        path = corpus / name
        if damage == "lost":
            path.unlink()
        elif damage == "changed":
            path.write_bytes(whole[name][:-9] + b"#" + whole[name][-8:])
        else:
            path.write_bytes(whole[name][:-20] if damage == "cut" else b"")
        with pytest.raises(UserError) as error:
            verify(corpus, full=True)
        assert str(path) in error.value.problem
        assert "run the same `shoal data tokenize` again" in error.value.remedy
        if "delete this file" in error.value.remedy:
            path.unlink(missing_ok=True)
        assert build() == corpus
        verify(corpus, full=True)
        assert contents(corpus) == whole


def test_a_copied_corpus_has_another_remedy(build: Callable[[], Path], tmp_path: Path) -> None:
    copy = shutil.copytree(build(), tmp_path / "copy", ignore=shutil.ignore_patterns("job"))
    for name in SMALL:
        good = (copy / name).read_bytes()
        (copy / name).write_bytes(good[:-3])
        with pytest.raises(UserError, match=name) as error:
            verify(copy, full=False)
        assert "copy this file again" in error.value.remedy
        (copy / name).write_bytes(good)
    verify(copy, full=True)


def test_what_cannot_be_read_is_named(build: Callable[[], Path], tmp_path: Path) -> None:
    corpus = build()
    (corpus / "blocks.crc32").unlink()
    (corpus / "blocks.crc32").mkdir()
    with pytest.raises(StoreError, match=r"blocks\.crc32: Is a directory"):
        verify(corpus, full=False)
    with pytest.raises(UserError, match="no corpus here"):
        verify(tmp_path / "a.jsonl", full=False)


def test_documents_come_back_from_characters_and_bytes(tmp_path: Path) -> None:
    """Of a tokenizer in SentencePiece's manner: a mark for the space, and bytes for characters it lacks."""
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "▁", "▁b"]
    model = BPE({name: token for token, name in enumerate(names)}, [("▁", "b")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["a b", "ab  \n東京 é\t😀 ", "</s> b", "a\x1b[2J\x9b31m\u202e b\x7f"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenize([str(tmp_path / "a.jsonl")], tmp_path / "tokenizer.json", tmp_path / "c", TokenizeOptions())
    out = io.BytesIO()
    write_documents(tmp_path / "c", out)
    assert [json.loads(line)["text"] for line in out.getvalue().splitlines()] == texts
    assert not any(
        character in out.getvalue().decode() for character in "\x1b\x9b\u202e\x7f"
    )  # a terminal acts on them
    tokens = Corpus.open(tmp_path / "c")
    assert tokens.token_bytes[tokens.store.tokens(0, 0, tokens.tokens)].sum() == sum(len(one.encode()) for one in texts)


def test_a_damaged_shard_is_not_shown(build: Callable[[], Path]) -> None:
    corpus = build()
    path = corpus / Corpus.open(corpus).manifest.shards.file[0].decode()
    path.write_bytes(bytes(path.stat().st_size))
    with (
        open("/dev/null", "wb") as out,
        pytest.raises(UserError, match=r"block 0 .* does not match its CRC-32") as error,
    ):
        write_documents(corpus, out)
    assert str(path) in error.value.problem
