"""The compiled scanners cut where `tokenizers` cuts, piece by piece, and counting adds up."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from shoal_data.bpe.unicode import character_classes
from shoal_data.bpe.wordcount import WordCounter
from shoal_data.tokenizer.patterns import PATTERNS

# Characters that the patterns treat apart, beside any at all.
TRICKY = (
    "abzAZſsStTrReEvVmMlLdD'' \t\r\n\x0b\x85\xa0\u2028\u3000!?.,-_<>|~"
    "0123٣½ⅷ一龥龦〇ぁ゠ァヿ゙゛ー・éß́̀א्का😀🏽\u200d\x00\ue000\u0378"
)
TEXT = st.text(st.one_of(st.sampled_from(TRICKY), st.characters(exclude_categories=["Cs"])), max_size=24)


def reference(name: str, text: str) -> Counter[str]:
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(one), "isolated") for one in PATTERNS[name]])
    return Counter(piece for piece, _ in cut.pre_tokenize_str(text))


def counted(name: str, texts: list[str]) -> Counter[str]:
    counter = WordCounter(name)
    counter.add_text(pa.array(texts, pa.large_string()))
    words, counts, _ = counter.items()
    return Counter({word.decode(): count for word, count in zip(words.to_pylist(), counts.tolist(), strict=True)})


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=600)
@given(text=TEXT)
def test_cuts_as_tokenizers_does_on_any_unicode(name: str, text: str) -> None:
    assert counted(name, [text]) == reference(name, text)


@pytest.mark.parametrize("name", PATTERNS)
def test_counts_real_text(name: str, texts: list[str]) -> None:
    expected: Counter[str] = Counter()
    for text in texts:
        expected += reference(name, text)
    assert counted(name, texts) == expected


def test_the_classes_are_tokenizers_own() -> None:
    classes = character_classes()
    assert classes.shape == (0x110000,)
    text = "".join(chr(point) for point in range(0x20, 0x3000))
    cut = pre_tokenizers.Split(Regex(r"\p{L}+"), "removed").pre_tokenize_str(text)
    others = {ord(one) for piece, _ in cut for one in piece}
    assert {point for point in range(0x20, 0x3000) if not classes[point] & 1} == others


def test_partial_counts_add_up_and_tables_grow() -> None:
    words = [f"w{number}" for number in range(70_000)]
    whole = WordCounter("gpt2")
    whole.add_text(pa.array([" ".join(words)], pa.large_string()))
    twice = WordCounter("gpt2")
    for _ in range(2):
        twice.add_counts(*whole.items()[:2])
    names, counts, _ = twice.items()
    assert np.array_equal(counts, 2 * whole.items()[1])
    assert names.equals(whole.items()[0])


def test_a_word_larger_than_the_table() -> None:
    assert counted("gpt2", ["x" * 3_000_000]) == Counter({"x" * 3_000_000: 1})
