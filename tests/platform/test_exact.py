"""Fixed-point sums: independent of order and sharing to the last bit, and close to what float64 says."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.worker.ballot import Ballot, Vote
from shoal.worker.exact import NORM, Fixed
from shoal.worker.sums import Sums
from shoal_core.grid import BITS, HEADROOM, UNKNOWN, squares

PARTS = 16


def fixed(exponent: int) -> Fixed:
    one = Fixed(PARTS)
    one.state[0] = exponent
    one.begin()
    return one


def largest_of(one: Fixed) -> float:
    return one.weigh(total(one), 0.0)[-1]


def total(one: Fixed) -> torch.Tensor:
    found = one.total()
    assert found is not None
    return found


@given(st.integers(0, 2**32), st.integers(1, PARTS))
def test_the_total_is_the_same_however_the_parts_are_shared_out(seed: int, cells: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** random.Random(seed).uniform(-6, 2.5)  # a first step, whose exponent is that of 1, has room for it
    parts = list(torch.randn(PARTS, 50, generator=generator) * scale)
    alone = Fixed(PARTS)
    alone.begin()
    for part in parts:
        alone.add(part)
    assert not alone.overflow
    alone.follow(largest_of(alone))
    exponent = alone.exponent
    one = fixed(exponent)
    for part in parts:
        one.add(part)
    assert not one.overflow
    shared = [fixed(exponent) for _ in range(cells)]
    random.Random(seed).shuffle(parts)
    for place, part in enumerate(parts):
        shared[place % cells].add(part)
    assert torch.equal(torch.stack([total(other) for other in shared]).sum(0), total(one))
    exactly = torch.stack(parts).double().sum(0)
    error = (one.value(total(one)).double() - exactly).abs().max()
    assert error <= 1e-6 * exactly.abs().max()


def test_what_outgrows_its_room_is_noticed_and_given_more() -> None:
    one = Fixed(PARTS)
    one.follow(1.0)
    one.begin()
    one.add(torch.tensor([2.0**HEADROOM * 0.9]))
    assert not one.overflow
    one.add(torch.tensor([2.0 ** (HEADROOM + 2)]))
    assert one.overflow
    before = one.exponent
    assert not one.agree([before, before], largest_of(one), again=True)
    one.begin()
    one.add(torch.tensor([2.0 ** (HEADROOM + 2)]))
    assert not one.overflow
    assert one.agree([one.exponent] * 2, largest_of(one), again=False)


def test_who_was_stopped_before_learning_the_exponent_takes_it_from_the_others() -> None:
    learned, late = fixed(UNKNOWN), fixed(UNKNOWN)
    for one in (learned, late):
        one.add(torch.tensor([3.0]))
    assert not learned.agree([UNKNOWN, UNKNOWN], largest_of(learned), again=False)
    votes = [int(one.state[0]) for one in (learned, late)]
    for one in (learned, late):
        assert not one.agree(votes, largest_of(one), again=False)
    assert int(learned.state[0]) == int(late.state[0]) == votes[0] != UNKNOWN


def test_a_sum_that_is_no_number_is_told_and_kept_out() -> None:
    one = fixed(30)
    one.add(torch.tensor([1.0, float("inf")]))
    assert one.nan
    assert total(one).tolist() == [0, 0]


@pytest.mark.parametrize("exact", [False, True])
def test_the_ballot_counts_every_sample_and_figure(exact: bool) -> None:
    ballot = Ballot(samples=8, micro_batches=4, ranks=2, cells=2, figures=2, exact=exact, compare=exact, copies=exact)
    words = []
    for worker in range(4):
        cell, rank = divmod(worker, 2)
        figures = {m: [0.1 * (m + 1), 1.0] for m in (cell, cell + 2)}
        taken = [m * 2 + rank for m in figures]
        norm = [0.5 + rank, *[0.0] * (NORM - 2), 7.0] if exact else [1.0]
        vote = Vote(worker, rank, taken, figures, norm, pause=worker == 3, again=False)
        vote = replace(vote, exponent=worker, checksum=7.0 + worker, seconds=worker / 2, copied=worker / 8)
        words.append(ballot.fill(vote, first_cell=cell == 0))
    count = ballot.read(torch.stack(words).sum(0), 0, 0)
    assert count.takers == [0, 1, 2, 3, 0, 1, 2, 3]
    assert count.stats == pytest.approx([2.0, 8.0])
    assert count.norms == ([[0.5, 0, 0, 0, 7.0], [1.5, 0, 0, 0, 7.0]] if exact else [[2.0]])
    assert (count.pause, count.again, count.exponents) == (True, False, [0, 1, 2, 3] if exact else [])
    assert count.seconds == [0.0, 0.5, 1.0, 1.5]
    assert count.copied == ([0.0, 0.125, 0.25, 0.375] if exact else [])
    assert count.checksums == ([7.0, 8.0, 9.0, 10.0] if exact else [])
    with pytest.raises(AssertionError, match="sample 100 was taken 2 times"):
        ballot.read(torch.stack([*words, words[0]]).sum(0), 0, 100)


def test_a_cell_without_a_micro_batch_has_zeros_where_the_others_have_sums() -> None:
    shard: Any = SimpleNamespace(
        begin=lambda step: None, round_to=lambda grid: None, sums=lambda: torch.zeros(5, device="meta")
    )
    workload: Any = None
    total = Sums(workload, shard, 0, 1, Fixed(PARTS)).add_up(0, [])
    assert (total.device.type, total.dtype, total.shape) == ("meta", torch.int64, (5,))


@given(st.lists(st.integers(-(2**BITS), 2**BITS), min_size=1, max_size=9), st.integers(0, 8))
def test_squares_add_up_exactly_wherever_a_total_is_cut(entries: list[int], where: int) -> None:
    found = torch.tensor(entries)
    assert squares(found) == sum(entry * entry for entry in entries)
    assert squares(found[:where]) + squares(found[where:]) == squares(found)


def test_squares_of_many_of_the_largest_do_not_overflow() -> None:
    many = torch.full((3 << 20,), (1 << BITS) - 1)
    assert squares(many) == (3 << 20) * ((1 << BITS) - 1) ** 2


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_the_norm_is_the_same_however_gradients_are_cut(seed: int, ranks: int) -> None:
    gradients = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 10.0 ** random.Random(seed).uniform(
        -9, 6
    )
    loads = torch.tensor([3, 1 << 25])
    one = Fixed(PARTS)
    one.follow(float(gradients.abs().max()))
    whole = one.round(gradients)
    words = []
    for part in whole.tensor_split(sorted(random.Random(seed).choices(range(41), k=ranks - 1))):
        one.gradients = len(part)
        words.append(one.weigh(torch.cat([part, loads]), None))
        assert one.value(torch.cat([part, loads]))[len(part) :].tolist() == [3.0, float(1 << 25)]
    norm_sq, peak = one.weighed(words, 8)
    one.gradients = len(whole)
    assert (norm_sq, peak) == one.weighed([one.weigh(torch.cat([whole, loads]), None)], 8)
    assert norm_sq == pytest.approx(float(gradients.double().square().sum()) / 64, rel=1e-9)
    assert peak == pytest.approx(float(gradients.abs().max()))


@pytest.mark.parametrize("peak", [0.0, float("nan")])
def test_a_first_step_with_nothing_to_go_by_commits(peak: float) -> None:
    one = fixed(UNKNOWN)
    assert not one.agree([UNKNOWN], peak, again=False)
    assert one.agree([int(one.state[0])], peak, again=False)
