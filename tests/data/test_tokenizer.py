"""A trained tokenizer is `tokenizers`' own, and every library that loads it agrees."""

from __future__ import annotations

import json
from pathlib import Path

import gigatoken
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from shoal_core.errors import UserError
from shoal_data.bpe.train import TrainOptions, train
from shoal_data.sources.sample import write_sample
from shoal_data.tokenizer.encoder import Encoder
from shoal_data.tokenizer.patterns import PATTERNS, pre_tokenizer
from shoal_data.tokenizer.special import SPECIAL_TOKENS


def peer(texts: list[str], pattern: str, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.mark.parametrize("pattern", PATTERNS)
def test_training_gives_the_same_tokenizer_as_tokenizers(raw: Path, tmp_path: Path, pattern: str) -> None:
    path = train([str(raw / "*.parquet")], tmp_path / "out", TrainOptions(900, pattern=pattern, part_bytes=20_000))
    texts = [text for file in sorted(raw.glob("*.parquet")) for text in pq.read_table(file)["text"].to_pylist()]
    expected = json.loads(peer(texts, pattern, 900).to_str())["model"]
    found = json.loads(path.read_bytes())["model"]
    assert found["merges"] == expected["merges"]
    assert found["vocab"] == expected["vocab"]


def test_special_tokens_go_where_they_are_told(raw: Path, tmp_path: Path) -> None:
    special = {"<eos>": 599, "<pad>": 7}
    path = train([str(raw / "*.parquet")], tmp_path / "out", TrainOptions(600, special=special))
    tokenizer = Tokenizer.from_file(str(path))
    assert [tokenizer.token_to_id(name) for name in special] == [599, 7]
    assert tokenizer.get_vocab_size() == 600
    assert sorted(tokenizer.get_vocab().values()) == list(range(600))
    text = "def merge(a, b): return a + b"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_transformers_tokenizers_and_gigatoken_agree(tokenizer: Path, texts: list[str]) -> None:
    mine = Tokenizer.from_file(str(tokenizer))
    auto = AutoTokenizer.from_pretrained(str(tokenizer.parent))
    fast = gigatoken.Tokenizer(str(tokenizer))
    assert auto.eos_token_id == mine.token_to_id("<|end_of_sentence|>")
    for text in texts:
        ids = mine.encode(text).ids
        assert auto(text, add_special_tokens=False)["input_ids"] == ids
        assert fast.encode(text).tolist() == ids
        assert mine.decode(ids) == text


def test_the_card_says_how_well_it_compresses(tokenizer: Path, raw: Path) -> None:
    card = json.loads((tokenizer.parent / "card.json").read_bytes())
    texts = [text for file in sorted(raw.glob("*.parquet")) for text in pq.read_table(file)["text"].to_pylist()]
    mine = Tokenizer.from_file(str(tokenizer))
    tokens = sum(len(one.ids) for one in mine.encode_batch(texts))
    assert card["bytes_per_token"] == pytest.approx(sum(len(text.encode()) for text in texts) / tokens, abs=1e-3)
    assert set(card["bytes_per_token_by_language"]) == {"code", "web"}
    assert (tokenizer.parent / "compression.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def encoder(tokenizer: Path) -> Encoder:
    return Encoder(tokenizer.read_bytes(), str(tokenizer))


@settings(max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_and_both_encoders_agree(encoder: Encoder, tokenizer: Path, text: str) -> None:
    mine = Tokenizer.from_file(str(tokenizer))
    mine.encode_special_tokens = True
    ids = encoder.encode(pa.array([text], pa.large_string())).ids
    assert ids.tolist() == mine.encode(text).ids
    assert b"".join(encoder.tokens[token] for token in ids) == text.encode()


def test_text_cannot_forge_a_control_token(encoder: Encoder) -> None:
    ids = encoder.encode(pa.array(["a<|end_of_sentence|>b"], pa.large_string())).ids
    assert not set(ids.tolist()) & set(encoder.special.values())


def test_settings_out_of_range_are_named(raw: Path, tmp_path: Path) -> None:
    for options, word in (
        (TrainOptions(100), "vocab-size"),
        (TrainOptions(10**12), "vocab-size"),
        (TrainOptions(600, min_frequency=-1), "min-frequency"),
        (TrainOptions(600, pattern="gpt5"), "pattern"),
        (TrainOptions(600, special={"<a>": 1, "<b>": 1}), "special"),
    ):
        with pytest.raises(UserError, match=word):
            train([str(raw / "*.parquet")], tmp_path / "out", options)
    with pytest.raises(UserError, match="no file matches"):
        train([str(raw / "*.nothing")], tmp_path / "out", TrainOptions(600))


@pytest.mark.long
def test_a_32k_vocabulary_and_every_document_of_the_sample(tmp_path: Path) -> None:
    write_sample(tmp_path / "in")
    path = train([str(tmp_path / "in" / "*.parquet")], tmp_path / "out", TrainOptions(32768))
    files = sorted((tmp_path / "in").glob("*.parquet"))
    texts = [text for file in files for text in pq.read_table(file)["text"].to_pylist()]
    expected = peer(texts, "deepseek-v3", 32768)
    assert json.loads(path.read_bytes())["model"]["merges"] == json.loads(expected.to_str())["model"]["merges"]
    fast = Encoder(path.read_bytes(), str(path))
    mine = Tokenizer.from_file(str(path))
    mine.encode_special_tokens = True
    for text in texts:
        assert fast.encode(pa.array([text], pa.large_string())).ids.tolist() == mine.encode(text).ids
