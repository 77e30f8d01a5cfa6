"""In exact mode cells of every shape without stages come to the same bits: parameters, moments, averages, biases, the
guard's averages, loss and norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.testing import World
from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.pretrain import Pretrain
from tests.support import layouts_world, synthetic
from tests.support.layouts_world import Exact, whole

STEPS = 3


def config(parallel: dict[str, Any], **sections: Any) -> PretrainConfig:
    """One that three workers can share, who cut it at places that are no multiples of a vector."""
    batch = {"global_batch": 12, "micro_batch": 1}
    return synthetic.tiny(model={"d_model": 36}, batch=batch, parallel=parallel, ema_decay=0.9, **sections)


def run(world: World, folder: Path, workers: int, parallel: dict[str, Any], **sections: Any) -> list[Exact]:
    folder.mkdir()
    found = world.run(layouts_world.exact_run, config(parallel, **sections), STEPS, workers, str(folder))
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bits_do_not_hang_on_the_shape(four: World, tmp_path: Path, precision: str) -> None:
    shapes: list[tuple[int, dict[str, Any]]] = [(4, {}), (3, {}), (2, {"ep": 2}), (4, {"ep": 2}), (4, {"ep": 4})]
    if precision == "fp32":
        shapes.append((1, {}))
    first: list[Exact] = []
    for number, (workers, parallel) in enumerate(shapes):
        found = run(four, tmp_path / str(number), workers, parallel, precision=precision)
        first = first or found
        assert len(found) == workers
        assert_same(first, found)
    assert any(value.any() for value in whole([one.state for one in first]).values())
