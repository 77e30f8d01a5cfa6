"""The entropy of single tokens, against a closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shoal_data.reading.entropy import unigram_entropy


class HalfReader:
    """Reads token 1 half of the time, the other half spread over four tokens."""

    samples = 64

    def tokens(self, ids: range) -> np.ndarray:
        row = np.tile([1, 2, 1, 3, 1, 4, 1, 5], 128)
        return np.stack([np.concatenate(([0], row)) for _ in ids]).astype(np.uint16)


class Half:
    """Stands for a corpus that is read so."""

    vocab_size, tokens = 8, 1 + 64 * 1024

    def reader(self, seq_len: int, seed: int) -> HalfReader:
        return HalfReader()


def test_it_is_the_entropy_of_the_frequencies() -> None:
    expected = -(0.5 * math.log(0.5) + 4 * 0.125 * math.log(0.125))
    half: Any = Half()
    assert unigram_entropy(half) == pytest.approx(expected)
