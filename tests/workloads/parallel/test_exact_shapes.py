"""In exact mode cells of every shape without stages come to the same bits: parameters, moments, averages, biases, the
guard's averages, loss and norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.testing import World
from shoal_workloads.config import PretrainConfig
from tests.support import layouts_world, synthetic
from tests.support.layouts_world import Exact, whole

STEPS = 3


def config(parallel: dict[str, Any], **sections: Any) -> PretrainConfig:
    """One that three workers can share, who cut it at places that are no multiples of a vector."""
    batch = {"global_batch": 12, "micro_batch": 1}
    return synthetic.tiny(model={"d_model": 36}, batch=batch, parallel=parallel, ema_decay=0.9, **sections)


def run(world: World, folder: Path, workers: int, parallel: dict[str, Any], precision: str) -> list[Exact]:
    folder.mkdir()
    asked = (config(parallel, precision=precision), STEPS, workers, str(folder), bool(parallel.get("rebalance")))
    found = [layouts_world.exact_run(*asked)] if workers == 1 else world.run(layouts_world.exact_run, *asked)
    return [one for one in found if one is not None]


def assert_same(one: list[Exact], other: list[Exact]) -> None:
    mine, theirs = whole([part.state for part in one]), whole([part.state for part in other])
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not np.array_equal(mine[name], theirs[name])] == []
    for part in (*one, *other):
        assert np.array_equal(part.biases, one[0].biases)
        assert part.guard == one[0].guard
        figures = {name: value for name, value in part.metrics.items() if not name.startswith("exchange_")}
        assert figures == {name: one[0].metrics[name] for name in figures}


@pytest.mark.parametrize(
    ("precision", "shapes"),
    [
        ("fp32", [(1, {}), (4, {"ep": 2, "recompute": "dispatch"}), (3, {})]),
        pytest.param(
            "fp32", [(4, {}), (2, {}), (2, {"ep": 2, "rebalance": 1}), (4, {"ep": 4})], marks=pytest.mark.long
        ),
        pytest.param("bf16", [(2, {}), (3, {}), (2, {"ep": 2}), (4, {"ep": 2})], marks=pytest.mark.long),
    ],
)
def test_the_bits_do_not_hang_on_the_shape(
    four: World, tmp_path: Path, precision: str, shapes: list[tuple[int, dict[str, Any]]]
) -> None:
    """Nor on how much is made again in backward, or where experts lie."""
    first: list[Exact] = []
    for number, (workers, parallel) in enumerate(shapes):
        found = run(four, tmp_path / str(number), workers, parallel, precision)
        first = first or found
        assert len(found) == workers
        assert_same(first, found)
    assert first[0].metrics["grad_norm"] > 0
