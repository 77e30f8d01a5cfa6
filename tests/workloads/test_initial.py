"""Initial values depend on the seed and the parameter's name, not on who holds which part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shoal_workloads.parallel.initial import Draw, init_shards
from shoal_workloads.parallel.shards import ParamShard

MATRIX = [-0.00398457842, 0.0041684974, -0.0027549041]
ELEMENT = [0.00278581143, 0.00163263513, 0.00746669667]


def drawn(
    shape: tuple[int, ...], first: tuple[int, ...], whole: tuple[int, ...], draw: Draw, seed: int = 3
) -> torch.Tensor:
    """The part of a parameter of shape `whole` that begins at `first`."""
    shard = ParamShard("w", nn.Parameter(torch.empty(shape)), whole, first, 1.0, None, ())
    with torch.no_grad():
        init_shards([shard], seed, 0.006, draw)
    return shard.local


@pytest.mark.parametrize("draw", ["matrix", "element"])
def test_parts_are_those_of_the_whole(draw: Draw) -> None:
    matrix = drawn((40, 30), (0, 0), (40, 30), draw)
    assert torch.equal(drawn((7, 30), (11, 0), (40, 30), draw), matrix[11:18])
    experts = drawn((6, 20, 10), (0, 0, 0), (6, 20, 10), draw)
    assert torch.equal(drawn((2, 5, 10), (4, 15, 0), (6, 20, 10), draw), experts[4:, 15:])
    assert drawn((0, 30), (40, 0), (40, 30), draw).numel() == 0
    assert torch.equal(drawn((9,), (0,), (9,), draw), torch.ones(9))


def test_elements_are_normal_and_independent() -> None:
    values = drawn((1000, 1001), (0, 0), (1000, 1001), "element").double() / 0.006
    assert abs(values.mean()) < 4e-3
    assert abs(values.var() - 1) < 6e-3
    assert abs(values.pow(4).mean() - 3) < 0.03
    assert 4 < values.abs().max() < 7
    for shifted in (values[:, 1:] * values[:, :-1], values[1:] * values[:-1]):
        assert abs(shifted.mean()) < 4e-3
    other = drawn((1000, 1001), (0, 0), (1000, 1001), "element", seed=4).double() / 0.006
    assert abs((values * other).mean()) < 4e-3


def test_the_values_of_a_run_stay() -> None:
    """A run that is made again begins as it did."""
    assert drawn((1, 3), (0, 0), (1, 3), "matrix").tolist()[0] == pytest.approx(MATRIX, rel=1e-6)
    assert drawn((1, 3), (0, 0), (1, 3), "element").tolist()[0] == pytest.approx(ELEMENT, rel=1e-6)
