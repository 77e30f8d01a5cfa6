"""Mixtures keep their weights at every prefix, and every source's epochs are whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_data.reading.order import ROUND, Mixture, SampleOrder, turns_of


@settings(max_examples=20)
@given(st.lists(st.floats(0.02, 1), min_size=1, max_size=6), st.integers(0, 10**12))
def test_a_mixture_keeps_its_weights_at_every_prefix(raw: list[float], far: int) -> None:
    weights = np.array(raw) / sum(raw)
    mixture = Mixture(weights.tolist())
    source, _ = mixture(np.arange(5000))
    for number, weight in enumerate(weights):
        seen = np.cumsum(source == number)
        # Even spreading leaves a source within one turn for each other source of its share.
        assert np.abs(seen - weight * np.arange(1, 5001)).max() < len(weights) + 0.1
    _, turn = mixture(np.array([far, far + ROUND]))
    assert turn[1] - turn[0] == np.bincount(mixture(np.arange(ROUND))[0])[mixture(np.array([far]))[0][0]]


@settings(max_examples=30)
@given(st.lists(st.floats(1e-4, 1), min_size=1, max_size=40), st.sampled_from([0.0, 1e-9, -1e-9, 9e-7, -9e-7]))
def test_a_round_has_all_its_turns_however_weights_are_rounded(raw: list[float], off: float) -> None:
    weights = np.array(raw) / sum(raw) * (1 + off)
    turns = turns_of(weights.tolist())
    assert turns.sum() == ROUND
    assert np.abs(turns - weights * ROUND).max() < 1
    source, turn = Mixture(weights.tolist())(np.arange(ROUND))
    assert np.bincount(source, minlength=len(weights)).tolist() == turns.tolist()
    assert all(turn[source == number].tolist() == list(range(count)) for number, count in enumerate(turns.tolist()))


def test_a_source_below_half_a_turn_has_none() -> None:
    assert turns_of([1 - 2e-6, 2e-6]).tolist() == [ROUND, 0]


@pytest.mark.parametrize("weights", [[0.5, 0.4], [0.6, 0.5], [1.0, 0.0], [1.5, -0.5], [float("nan"), 0.5], []])
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"add up to|above 0"):
        Mixture(weights)


def test_turns_of_a_source_are_consecutive() -> None:
    source, turn = Mixture([0.7, 0.2, 0.1])(np.arange(3 * ROUND))
    for number in range(3):
        mine = turn[source == number]
        assert mine.tolist() == list(range(len(mine)))


def test_every_sample_once_an_epoch_and_another_order_the_next() -> None:
    order = SampleOrder([97], None, seed=3)
    _, first = order(np.arange(97))
    _, second = order(np.arange(97, 194))
    assert sorted(first) == sorted(second) == list(range(97))
    assert first.tolist() != second.tolist()


def test_every_sample_once_a_source_epoch_under_weights() -> None:
    order = SampleOrder([50, 10], [0.5, 0.5], seed=3)
    stream, sample = order(np.arange(200))
    for number, count in ((0, 50), (1, 10)):
        mine = sample[stream == number]
        for lap in range(len(mine) // count):
            assert sorted(mine[lap * count : (lap + 1) * count]) == list(range(count))


@pytest.mark.parametrize("world", [1, 2, 3, 7, 16])
def test_order_does_not_depend_on_the_world(world: int) -> None:
    order = SampleOrder([1000, 300], [0.6, 0.4], seed=1)
    whole = np.stack(order(np.arange(240)), axis=1)
    for step in range(240 // 48):
        batch = np.arange(step * 48, (step + 1) * 48)
        parts = [np.stack(order(batch[rank::world]), axis=1) for rank in range(world)]
        merged = np.empty((48, 2), np.int64)
        for rank, part in enumerate(parts):
            merged[rank::world] = part
        assert np.array_equal(merged, whole[batch])
