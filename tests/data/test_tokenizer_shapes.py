"""Shapes of tokenizer.json that the world has: each is encoded as `tokenizers` does, or refused by what it does."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers
from tokenizers import pre_tokenizers as pt

from shoal_core.errors import UserError
from shoal_data.tokenizer.encoder import Encoder
from shoal_data.tokenizer.fast_rules import FAST_PATTERNS
from tests.support.tokenizer_files import (
    BYTES,
    REPLACE,
    TEXTS,
    byte_fallback,
    byte_level,
    cut,
    deepseek_v3,
    gemma,
    llama3,
    nasty,
    own_pattern,
    qwen2,
    roberta,
    with_added,
    with_model,
)

SPACES = [" " * count for count in range(24, 1, -1)]

#: shape -> its tokenizer.json and what encodes it
TAKEN: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "GPT-2": (byte_level, "gigatoken"),
    "cl100k": (lambda: byte_level(cut(*FAST_PATTERNS["cl100k"])), "gigatoken"),
    "Llama 3": (llama3, "gigatoken"),
    "Qwen 2": (qwen2, "gigatoken"),
    "Qwen 3.5": (lambda: byte_level(cut(*FAST_PATTERNS["qwen3.5"]), normalizer={"type": "NFC"}), "gigatoken"),
    "o200k": (lambda: byte_level(cut(*FAST_PATTERNS["o200k"])), "gigatoken"),
    "Nemotron 3": (lambda: byte_level(cut(*FAST_PATTERNS["nemotron"])), "gigatoken"),
    "DeepSeek-V3": (deepseek_v3, "gigatoken"),
    "GPT-NeoX": (lambda: with_added(byte_level(), *SPACES, normalized=True), "gigatoken"),
    "OLMo": (
        lambda: with_added(byte_level(normalizer={"type": "NFC"}), "|||IP_ADDRESS|||", *SPACES, normalized=True),
        "gigatoken",
    ),
    "Phi-2": (lambda: with_added(byte_level(), *SPACES, "\t\t\t", "\t\t"), "gigatoken"),
    "RoBERTa without its space": (roberta, "gigatoken"),
    "ByteLevel that does not cut": (
        lambda: byte_level(pt.ByteLevel(add_prefix_space=False, use_regex=False)),
        "tokenizers",
    ),
    "StarCoder with a Split for its Digits": (
        lambda: byte_level(pt.Sequence([pt.Split(Regex(r"\p{N}"), "isolated"), pt.ByteLevel(add_prefix_space=False)])),
        "tokenizers",
    ),
    "a pattern of its own": (own_pattern, "tokenizers"),
    "a known pattern, merged with what follows": (
        lambda: byte_level(
            pt.Sequence(
                [
                    pt.Split(Regex(FAST_PATTERNS["cl100k"][0]), "merged_with_next"),
                    pt.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        ),
        "tokenizers",
    ),
    "a known pattern, cut once more": (
        lambda: byte_level(
            pt.Sequence([pt.Split(Regex(FAST_PATTERNS["cl100k"][0]), "isolated"), pt.ByteLevel(add_prefix_space=False)])
        ),
        "tokenizers",
    ),
    "added tokens that are whole words": (
        lambda: with_added(byte_level(), "the", "return", single_word=True),
        "tokenizers",
    ),
    "an added token within a special one": (lambda: with_added(byte_level(), "endof"), "tokenizers"),
    "Gemma": (gemma, "gigatoken"),
    "SentencePiece without pre-tokenizer": (lambda: byte_fallback(REPLACE, None), "gigatoken"),
    "Mistral v0.3 without its space": (
        lambda: byte_fallback(None, pt.Metaspace(prepend_scheme="never", split=False)),
        "gigatoken",
    ),
    "byte fallback, spaces as they are": (lambda: byte_fallback(None, None), "gigatoken"),
}


@functools.cache
def encoder_of(shape: str) -> tuple[Encoder, Tokenizer]:
    content = json.dumps(TAKEN[shape][0]())
    peer = Tokenizer.from_str(content)
    peer.encode_special_tokens = True
    return Encoder(content.encode(), f"{shape}.json"), peer


@pytest.mark.parametrize("shape", TAKEN)
def test_a_shape_is_encoded_as_tokenizers_does(shape: str) -> None:
    encoder, peer = encoder_of(shape)
    assert encoder.engine == TAKEN[shape][1]
    assert any("slower" in said for said in encoder.says) == (encoder.engine == "tokenizers")
    assert encoder.token_bytes.tolist() == [len(text) for text in encoder.tokens]
    texts = [*nasty(7), *TEXTS[:5]]
    prepared = encoder.prepare(pa.array(texts, pa.large_string()))
    stream = encoder.encode(prepared)
    for number, text in enumerate(prepared.to_pylist()):
        ids = stream.ids[stream.offsets[number] : stream.offsets[number + 1]].tolist()
        assert ids == peer.encode(text, add_special_tokens=False).ids, text
        assert b"".join(encoder.tokens[token] for token in ids) == text.encode(), text
        assert not set(ids) & set(encoder.special.values()), text


def word_piece() -> dict[str, Any]:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##s": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pt.BertPreTokenizer()
    config: dict[str, Any] = json.loads(tokenizer.to_str())
    return config


def unigram() -> dict[str, Any]:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("t", -2.0)], unk_id=0))
    tokenizer.pre_tokenizer = pt.Metaspace()
    config: dict[str, Any] = json.loads(tokenizer.to_str())
    return config


def word_level() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]")).to_str())
    return config


def spelled_whole() -> dict[str, Any]:
    """A control token in the vocabulary that no merge makes, but that is found as a whole word."""
    config = byte_level()
    vocab = config["model"]["vocab"]
    vocab["<>"] = len(vocab)
    return with_added(with_model(config, ignore_merges=True), "<>", special=True)


PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), REPLACE])

#: shape -> its tokenizer.json, and what the refusal says
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "BERT": (word_piece, "its model is WordPiece"),
    "T5": (unigram, "its model is Unigram"),
    "whole words": (word_level, "its model is WordLevel"),
    "Llama 2, Mistral v0.1": (lambda: byte_fallback(PREPEND, None), "Prepend puts '▁' before every text"),
    "Mistral v0.3": (
        lambda: byte_fallback(None, pt.Metaspace(prepend_scheme="first", split=False)),
        "prepend_scheme first",
    ),
    "RoBERTa": (lambda: byte_level(pt.ByteLevel(add_prefix_space=True)), "add_prefix_space"),
    "StarCoder": (
        lambda: byte_level(pt.Sequence([pt.Digits(individual_digits=True), BYTES])),
        "Digits is none",
    ),
    "Whitespace": (lambda: byte_level(pt.Sequence([pt.Whitespace(), BYTES])), "Whitespace drops"),
    "WhitespaceSplit": (lambda: byte_level(pt.Sequence([pt.WhitespaceSplit(), BYTES])), "WhitespaceSplit drops"),
    "Punctuation": (lambda: byte_level(pt.Sequence([pt.Punctuation(), BYTES])), "Punctuation is none"),
    "Split that removes": (lambda: byte_level(pt.Sequence([pt.Split(" ", "removed"), BYTES])), "drops characters"),
    "bytes without ByteLevel": (lambda: byte_level(pre_tokenizer=None), "neither a ByteLevel"),
    "ByteLevel twice": (lambda: byte_level(pt.Sequence([BYTES, BYTES])), "twice"),
    "NFKC": (lambda: byte_level(normalizer={"type": "NFKC"}), "NFKC changes text"),
    "Lowercase": (lambda: byte_level(normalizer={"type": "Lowercase"}), "Lowercase changes text"),
    "spaces as ▁ before bytes": (
        lambda: byte_level(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        "Replace changes text",
    ),
    "a byte is missing": (
        lambda: with_model(config := byte_level(), vocab=without(config, "ł")),
        "no token for 1 of the bytes",
    ),
    "a byte of the fallback is missing": (
        lambda: with_model(config := byte_fallback(REPLACE, None), vocab=without(config, "<0x85>")),
        "no token for 1 of the bytes of text, such as 0x85",
    ),
    "dropout": (lambda: with_model(byte_level(), dropout=0.1), "at random"),
    "suffixes": (lambda: with_model(byte_level(), end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "a special token that merges make": (lambda: byte_level(special=["the"]), "'the' is spelled by plain text"),
    "a special token that is a byte": (lambda: byte_level(special=["A"]), "'A' is spelled by plain text"),
    "a special token that is a whole word": (spelled_whole, "'<>' is spelled by plain text"),
    "an added token that swallows spaces": (lambda: with_added(byte_level(), "<b>", lstrip=True), "swallows"),
    "an added token that is not NFC": (
        lambda: with_added(byte_level(normalizer={"type": "NFC"}), "e\u0301"),
        "not normalized",
    ),
    "an added token of two texts": (lambda: with_added(byte_level(), "Ġthe"), "stands for b' the'"),
    "an added token without text": (lambda: with_added(byte_level(), ""), "is empty"),
    "two added tokens of one id": (
        lambda: with_added(with_added(byte_level(), "<a>", id=700), "<b>", id=700),
        "the id 700",
    ),
    "an added token beyond the vocabulary": (lambda: with_added(byte_level(), "<a>", id=5000), "has the id 5000"),
    "a negative id": (lambda: with_added(byte_level(), "<a>", id=-1), "the token id -1"),
    "an id out of range": (lambda: with_added(byte_level(), "<a>", id=1 << 40), "is not one of 0"),
    "two entries of one id": (
        lambda: with_model(config := byte_level(), vocab={**config["model"]["vocab"], "<a>": 5}),
        "one id",
    ),
    "a list": (lambda: [1], "not a tokenizer.json"),
    "a vocab.json": (lambda: {"a": 1}, "not a tokenizer.json"),
    "merges of unknown tokens": (lambda: with_model(byte_level(), merges=[["a", "zzz"]]), "a merge makes 'azzz'"),
}


def without(config: dict[str, Any], name: str) -> dict[str, int]:
    return {entry: token for entry, token in config["model"]["vocab"].items() if entry != name}


@pytest.mark.parametrize("shape", REFUSED)
def test_a_shape_that_loses_or_adds_text_is_refused_by_name(shape: str) -> None:
    make, said = REFUSED[shape]
    with pytest.raises(UserError, match=rf"(?s)^a\.json: .*{said}.*remedy: "):
        Encoder(json.dumps(make()).encode(), "a.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"null", b'{"model": {"type": "BPE"}}'])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^a\.json: not a tokenizer\.json"):
        Encoder(content, "a.json")
