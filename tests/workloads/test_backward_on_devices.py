"""Forward and backward on a GPU, without one: no operator mixes devices, and the host waits where it must alone.

Measured once, in a process of its own (see `support.backward_on_cuda`); operators are bounded so that a new copy, cast
or loop over experts is seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.backward_on_cuda import Count
from tests.support.cuda_library import DEVICE, CannotCompile, compile_library


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Count]]:
    try:
        library = compile_library(DEVICE, tmp_path_factory.mktemp("device"))
    except CannotCompile as error:
        pytest.skip(f"no backward on CUDA without a GPU here: {error}")
    paths = os.pathsep.join(filter(None, sys.path))
    made = subprocess.run(
        [sys.executable, "-m", "tests.support.backward_on_cuda"],
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": paths},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    found: dict[str, dict[str, Count]] = json.loads(made.stdout.splitlines()[-1])
    return found


def test_the_imitation_finds_a_value_that_backward_reads(counts: dict[str, dict[str, Count]]) -> None:
    assert counts["careless"]["backward"]["waits"] == {"aten::_local_scalar_dense": 1}


@pytest.mark.parametrize(
    ("part", "waits", "forward", "backward"),
    [
        ("experts here", 0, 60, 75),
        ("experts flat", 1, 90, 85),
        ("experts hierarchical", 2, 160, 90),
        ("attention", 0, 60, 85),
        ("head", 0, 25, 10),
        ("layer, norms made again", 0, 140, 245),
        ("layer, rows sent again", 1, 170, 260),
        ("model here", 0, 500, 640),
        ("model flat", 1, 320, 375),
    ],
)
def test_forward_waits_for_counts_of_rows_alone_and_backward_for_nothing(
    part: str, waits: int, forward: int, backward: int, counts: dict[str, dict[str, Count]]
) -> None:
    found = counts[part]
    assert found["forward"]["waits"] == ({"event": waits} if waits else {})
    assert found["backward"]["waits"] == {}
    assert found["forward"]["operators"] <= forward
    assert 0 < found["backward"]["operators"] <= backward
