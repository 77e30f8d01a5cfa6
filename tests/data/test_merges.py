"""The merge loop gives `tokenizers`' BpeTrainer's merges, one by one."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numba.core.caching import CacheImpl
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from shoal_data.bpe.compiled import compiled
from shoal_data.bpe.merges import learn_merges
from shoal_data.bpe.train import byte_alphabet
from shoal_data.tokenizer.byte_level import character_of_byte

WORDS = st.lists(
    st.one_of(
        st.text("ab", min_size=1, max_size=12),
        st.text("a", min_size=1, max_size=30),
        st.text("abcdé日", min_size=1, max_size=8),
        st.sampled_from(["abab", "aab", "<s>", "<s><s>"]),
    ),
    min_size=1,
    max_size=60,
)


def reference(
    words: list[str], vocab_size: int, least: int, special: list[str]
) -> tuple[list[list[str]], dict[str, int]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=least,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["merges"], model["vocab"]


@settings(max_examples=150)
@given(
    words=WORDS,
    vocab_size=st.sampled_from([258, 262, 280, 600]),
    least=st.sampled_from([0, 0, 2, 4]),
    special=st.sampled_from([[], ["<s>"], ["ab", "a", "<|x|>"]]),
)
def test_merges_are_those_of_tokenizers(words: list[str], vocab_size: int, least: int, special: list[str]) -> None:
    expected, vocab = reference(words, vocab_size, least, special)
    counts = Counter(word.encode() for word in words)
    alphabet, byte_ids = byte_alphabet(special)
    found = learn_merges(
        pa.array(list(counts), pa.large_binary()),
        np.array(list(counts.values()), np.int64),
        alphabet,
        byte_ids,
        vocab_size,
        least,
    )
    character = character_of_byte()
    names = ["".join(character[byte] for byte in token) for token in found.tokens]
    for at, name in enumerate(special):
        names[at] = name
    assert [[names[left], names[right]] for left, right in found.pairs.tolist()] == expected
    assert {name: at for at, name in enumerate(names)} == vocab


def test_counts_beyond_32_bits() -> None:
    """`tokenizers` keeps 32-bit counts; ten billion occurrences are still the most frequent pair here."""
    alphabet, byte_ids = byte_alphabet([])
    words = pa.array([b"ab", b"cd"], pa.large_binary())
    found = learn_merges(words, np.array([10, 10_000_000_000], np.int64), alphabet, byte_ids, 257, 0)
    assert found.tokens[-1] == b"cd"
    assert found.counts.tolist() == [10_000_000_000]


def test_loops_are_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without a home folder, of an installation that is not theirs to write to."""

    def following(number: int) -> int:
        return number + 1

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        njit(cache=True)(following)
    assert compiled(following)(1) == 2
