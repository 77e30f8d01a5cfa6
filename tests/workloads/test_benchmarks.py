"""The yardsticks of the benchmarks against what must hold of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ngram() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ngram", BENCHMARKS / "ngram.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXT = b"the cat sat on the mat; the dog sat on the log; \x00\xff the end. " * 3 + b"another cat ran"


@pytest.mark.parametrize("context", [b"the ", b"t on", b"zzzz", b"\xff th", b""])
def test_probabilities_of_the_next_byte_add_up_to_one(ngram: ModuleType, context: bytes) -> None:
    model = ngram.KneserNey(TEXT)
    found = [model.probabilities(context + bytes([byte]))[-1] for byte in range(256)]
    assert min(found) > 0
    assert sum(found) == pytest.approx(1, abs=1e-12)


def test_kneser_ney_bigram_by_hand(ngram: ModuleType) -> None:
    """abab + ac: bigrams ab 2, ba 2, ac 1; unigrams by what precedes them: a 1 (b), b 1 (a), c 1 (a)."""
    model = ngram.KneserNey(b"ababac", order=2)
    discount = 1 / (1 + 2 * 2)  # one bigram occurs once, two twice
    below = 3 / (3 + 0)  # three unigrams of count one, none of two: discount 1, so only the uniform part is left
    unigram = (1 - below) / 3 + below * 3 / 3 / 256
    assert model.probabilities(b"ab")[1] == pytest.approx((2 - discount) / 3 + discount * 2 / 3 * unigram)
    assert model.probabilities(b"ab")[0] == pytest.approx(unigram)


def test_text_it_has_counted_costs_little(ngram: ModuleType) -> None:
    model = ngram.KneserNey(TEXT * 20)
    noise = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes()
    assert model.bits_per_byte(TEXT) < 1.2
    assert model.bits_per_byte(noise) > 7
