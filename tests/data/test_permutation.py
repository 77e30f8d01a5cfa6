"""The keyed permutation is a bijection, and stays the one it is."""

from __future__ import annotations

import numpy as np
import pytest

from shoal_data.reading.permutation import Permutation


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 129, 1000, 4095, 4096, 4097])
def test_is_a_bijection_at_small_sizes(size: int) -> None:
    for key in (0, 1, "a"):
        assert sorted(Permutation(size, key)(np.arange(size)).tolist()) == list(range(size))


def test_is_one_to_one_where_sampled_at_large_sizes() -> None:
    size = 3_600_000_000
    index = np.unique(np.random.default_rng(0).integers(0, size, 300_000))
    value = Permutation(size, 7, 2)(index)
    assert len(np.unique(value)) == len(index)
    assert value.min() >= 0
    assert value.max() < size


def test_is_inverted_nowhere_near_the_identity() -> None:
    """Neighbours land far apart, evenly over the range: mean distance of random pairs is a third of the size."""
    size = 1_000_003
    value = Permutation(size, 5)(np.arange(100_000))
    assert abs(np.abs(np.diff(value)).mean() / size - 1 / 3) < 0.01
    assert np.abs(np.histogram(value, 10, (0, size))[0] - 10_000).max() < 500


def test_never_changes() -> None:
    """A run that is resumed years later reads the same samples: these values are part of the format."""
    assert Permutation(3_600_000_000, 5)([0, 1, 2, 3_599_999_999]).tolist() == [
        680339932,
        545822519,
        2826608440,
        1876606419,
    ]


def test_refuses_an_empty_range() -> None:
    with pytest.raises(ValueError, match="1 <= size"):
        Permutation(0, 1)
