"""The encoder: what its two engines make of text, what it keeps of it, and what it says."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, normalizers
from tokenizers import pre_tokenizers as pt

from shoal_core.errors import UserError
from shoal_data.bpe.special_names import can_be_spelled
from shoal_data.reading.inspection import write_documents
from shoal_data.reading.reader import Corpus
from shoal_data.tokenizer import encoder as encoding
from shoal_data.tokenizer.byte_level import character_of_byte
from shoal_data.tokenizer.encoder import Encoded, Encoder, Gigatoken, load_encoder
from shoal_data.tokenizer.fast_rules import FAST_PATTERNS
from shoal_data.tokenizer.special import SPECIAL_TOKENS, beginning_of_text, end_of_text
from shoal_data.writing.options import TokenizeOptions
from shoal_data.writing.tokenize import tokenize
from tests.support.tokenizer_files import (
    BYTES,
    NASTY,
    TEXTS,
    byte_level,
    cut,
    gemma,
    nasty,
    own_pattern,
    qwen2,
    with_added,
    with_model,
)


def encoder_of(config: dict[str, Any]) -> Encoder:
    return Encoder(json.dumps(config).encode(), "a.json")


def encode(encoder: Encoder, *texts: str) -> Encoded:
    return encoder.encode(pa.array(texts, pa.large_string()))


@pytest.mark.parametrize("pattern", FAST_PATTERNS)
def test_gigatoken_cuts_text_where_tokenizers_does(pattern: str) -> None:
    """Every pair of bytes that occurs is a merge, so that a cut in another place gives other tokens."""
    draw = random.Random(11)
    texts = ["".join(draw.choices(NASTY, k=12)) for _ in range(5000)]
    character = character_of_byte()
    used = [character[byte] for byte in sorted({*"".join(texts).encode()})]
    merges = [[first, second] for first in used for second in used]
    vocab = {name: token for token, name in enumerate([*character.values(), *("".join(pair) for pair in merges)])}
    holder = Tokenizer(models.BPE())
    holder.pre_tokenizer = pt.ByteLevel(add_prefix_space=False) if pattern == "gpt2" else cut(*FAST_PATTERNS[pattern])
    content = json.dumps(with_model(json.loads(holder.to_str()), vocab=vocab, merges=merges))
    encoder, peer = Encoder(content.encode(), pattern), Tokenizer.from_str(content)
    assert encoder.engine == Gigatoken.name
    stream = encoder.encode(pa.array(texts, pa.large_string()))
    for number, wanted in enumerate(peer.encode_batch_fast(texts)):
        found = stream.ids[stream.offsets[number] : stream.offsets[number + 1]].tolist()
        assert found == wanted.ids, texts[number]


@pytest.mark.parametrize("make", [qwen2, gemma, own_pattern])
def test_documents_come_back_as_the_tokenizer_normalizes_them(
    make: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    config = make()
    encoder = encoder_of(config)
    texts = [text for text in nasty(3, 40) if text.strip()]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    tokenize([str(tmp_path / "a.jsonl")], tmp_path / "tokenizer.json", tmp_path / "corpus", TokenizeOptions())
    with (tmp_path / "back.jsonl").open("wb") as file:
        write_documents(tmp_path / "corpus", file)
    back = [json.loads(line)["text"] for line in (tmp_path / "back.jsonl").read_text().split("\n")[:-1]]
    changed = [encoder.prepare(pa.array([text], pa.large_string()))[0].as_py() for text in texts]
    assert back == changed
    assert (changed != texts) == any("normaliz" in said or "space" in said for said in encoder.says)
    corpus = Corpus.open(tmp_path / "corpus")
    ids = corpus.store.tokens(0, 0, corpus.tokens)
    assert corpus.token_bytes[ids].sum() == corpus.manifest.totals["bytes"] == sum(len(text.encode()) for text in back)


def test_characters_newer_than_pythons_unicode_are_normalized_as_tokenizers_does() -> None:
    newer, peer = "\U0001e08f", normalizers.NFC()
    texts = ["ascii", "e\u0301", f"a{newer}\u0316", f"a\u0301{newer}e\u0301", "\u1112\u1161\u11ab"]
    encoder = encoder_of(qwen2())
    assert encoder.prepare(pa.array(texts, pa.large_string())).to_pylist() == [
        peer.normalize_str(text) for text in texts
    ]


def test_control_tokens_stay_text_even_if_their_file_calls_them_plain() -> None:
    config = with_added(byte_level(special=["<|endoftext|>"]), "<|fim_prefix|>", "<think>")
    encoder = encoder_of(config)
    assert set(encoder.special) == {"<|endoftext|>", "<|fim_prefix|>"}
    ids = encode(encoder, "<|fim_prefix|><think>").ids.tolist()
    assert encoder.special["<|fim_prefix|>"] not in ids
    assert ids[-1] == config["added_tokens"][-1]["id"]


def test_truncation_is_left_out_and_said() -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    for pre in (None, pt.Sequence([pt.Split("-", "isolated"), BYTES])):
        encoder = encoder_of(byte_level(pre, truncation=truncation))
        ids = encode(encoder, TEXTS[0]).ids
        assert b"".join(encoder.tokens[token] for token in ids) == TEXTS[0].encode()
        assert any("whole" in said for said in encoder.says)


def test_a_token_of_more_bytes_than_16_bits_count_has_them() -> None:
    config = byte_level()
    vocab, merges, name = config["model"]["vocab"], config["model"]["merges"], "="
    while len(name) < 1 << 16:
        if [name, name] not in merges:
            merges.append([name, name])
            vocab[name + name] = len(vocab)
        name += name
    encoder = encoder_of(config)
    assert encoder.token_bytes[vocab[name]] == 1 << 16
    ids = encode(encoder, "=" * 70_000).ids
    assert encoder.token_bytes[ids].sum(dtype=int) == 70_000


def test_batches_of_the_slow_engine_keep_documents_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_BATCH_BYTES", 100)
    config = own_pattern()
    encoder, peer = encoder_of(config), Tokenizer.from_str(json.dumps(config))
    texts = ["", "ab " * 50, "", "東京", *["word"] * 60, "x" * 300, ""]
    stream = encoder.encode(pa.array(["left out", *texts], pa.large_string())[1:])
    sizes = [len(one.ids) for one in peer.encode_batch(texts)]
    assert stream.offsets.tolist() == [0, *itertools.accumulate(sizes)]
    assert encode(encoder).offsets.tolist() == [0]


def test_a_worker_trusts_what_its_driver_found(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(byte_level()))
    driver = load_encoder(path)
    worker = load_encoder(path, driver.digest, "tokenizers")
    assert worker is driver
    assert Encoder(path.read_bytes(), "a.json", "tokenizers").engine == "tokenizers"
    path.write_text(json.dumps(byte_level(cut(*FAST_PATTERNS["cl100k"]))))
    with pytest.raises(UserError, match="changed while the job ran"):
        load_encoder(path, "0" * 64, driver.engine)


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("SEP", {"deepseek-v3", "gpt2", "cl100k"}),
        ("||", {"deepseek-v3", "gpt2", "cl100k"}),
        ("A", {"deepseek-v3", "gpt2", "cl100k"}),
        ("é", {"deepseek-v3", "gpt2", "cl100k"}),
        ("ĠSEP", {"deepseek-v3", "gpt2", "cl100k"}),
        ("©Ã", {"deepseek-v3", "gpt2", "cl100k"}),
        ("123", {"deepseek-v3", "gpt2", "cl100k"}),
        ("1234", {"gpt2"}),
        ("@x", {"deepseek-v3", "cl100k"}),
        *((name, set()) for name in (*SPECIAL_TOKENS, "<eos>", "</s>", "[SEP]", " SEP", "東", "SEP東", "«sep»", "éa")),
    ],
)
def test_names_that_text_can_spell_are_known_before_training(name: str, patterns: set[str]) -> None:
    assert {pattern for pattern in ("deepseek-v3", "gpt2", "cl100k") if can_be_spelled(name, pattern)} == patterns


def test_the_end_of_text_of_tokenizers_in_use_is_found() -> None:
    for name in ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>"):
        assert end_of_text({"<pad>": 1, name: 7}) == 7
    assert end_of_text({"<|im_end|>": 3, "<|endoftext|>": 2}) == 2
    assert beginning_of_text({"<bos>": 5}) == 5
    with pytest.raises(UserError, match=r"its special tokens: <\|stop\|>"):
        end_of_text({"<|stop|>": 0})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_tokenizers_does_not_load_is_refused_however_it_is_written(encoding: str) -> None:
    """The corpus keeps the file as it is, for whoever loads it later."""
    content = json.dumps(byte_level()).encode(encoding)
    with pytest.raises(UserError, match=r"a\.json: not a tokenizer\.json that can be used"):
        Encoder(content, "a.json")
