"""Layouts on a backend with NCCL's manners, where sends and receives have no tags: what gloo computes, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.testing import World, fakenccl
from tests.support import layouts_world, synthetic
from tests.support.layouts_world import Run

pytestmark = pytest.mark.fakenccl

SCHEDULES = ("1f1b", "interleaved", "zb1p", "zbv", "dualpipev", "dualpipe")


def trained(ranks: World, folder: Path, backend: str, parallel: dict[str, Any], layers: int) -> list[Run]:
    """One step of eight micro-batches, as few as fill every schedule, and an evaluation."""
    job = synthetic.tiny(model={"n_layers": layers}, batch={"global_batch": 8, "micro_batch": 1}, parallel=parallel)
    place = folder / backend
    place.mkdir()
    answers = ranks.run(layouts_world.train, job, 1, ranks.size, 1, str(place), backend=backend)
    return [answer for answer in answers if answer is not None]


def check(ranks: World, folder: Path, parallel: dict[str, Any], layers: int) -> None:
    expected = trained(ranks, folder, "gloo", parallel, layers)
    found = trained(ranks, folder, fakenccl.NAME, parallel, layers)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.metrics == theirs.metrics
        assert mine.evaluation == theirs.evaluation
        assert np.array_equal(mine.loads, theirs.loads)
        for one, other in zip(mine.gradient + mine.state, theirs.gradient + theirs.state, strict=True):
            assert one[:3] == other[:3]
            assert np.array_equal(one[3], other[3]), one[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_stages(pair: World, tmp_path: Path, schedule: str) -> None:
    check(pair, tmp_path, {"pp": 2, "schedule": schedule}, layers=3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_four_stages(four: World, tmp_path: Path, schedule: str) -> None:
    check(four, tmp_path, {"pp": 4, "schedule": schedule}, layers=7)


@pytest.mark.parametrize(
    "parallel", [{"ep": 4}, {"ep": 2}, {"pp": 2, "ep": 2, "schedule": "dualpipe", "timed_every": 1}]
)
def test_experts_beside_stages_and_shards(four: World, tmp_path: Path, parallel: dict[str, Any]) -> None:
    check(four, tmp_path, parallel, layers=2)
