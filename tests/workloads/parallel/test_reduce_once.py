"""Gradients that FSDP reduces once for all micro-batches that it is given: the same, with as many fewer collectives,
for as much memory as the closed form says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shoal.testing import World
from shoal_core.errors import UserError
from shoal_workloads.config import PretrainConfig
from shoal_workloads.footprint import GB, footprint
from shoal_workloads.parallel.check import check_layout
from shoal_workloads.parallel.fits import check_fits, nearest, settled
from tests.support import synthetic
from tests.support.backends import BOTH_LONG
from tests.support.reducing import Reduced, reduced

TOLERANCE = 1e-5  # of the largest element of a tensor, as in the tests of layouts
WHOLE = "gradients, not reduced yet"
ON_GPUS = PretrainConfig.model_validate(
    {
        "model": {"preset": "v3-small-16b"},
        "data": {"corpus": "none", "seq_len": 4096},
        "batch": {"global_batch": 1024},
        "parallel": {"ep": 8, "recompute": "dispatch"},
        "precision": "bf16",
        "device": "cuda",
    }
)


def asked(config: PretrainConfig, once: bool) -> PretrainConfig:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"reduce_once": once})})


def config(workers: int, precision: str = "fp32", **parallel: Any) -> PretrainConfig:
    """Four micro-batches a step."""
    batch = {"global_batch": 4 * workers, "micro_batch": 1}
    return synthetic.tiny(batch=batch, precision=precision, parallel=parallel)


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= TOLERANCE * np.abs(value).max(), name


def check(runs: list[Reduced], one_by_one: list[Reduced], given: list[int], held: int) -> None:
    for mine, other in zip(runs, one_by_one, strict=True):
        assert other.scatters == 4 * other.groups > 0
        assert other.held == [0] * 5
        assert mine.scatters == len(given) * mine.groups
        assert mine.groups == other.groups
        assert mine.held == [held * (place > 0) for calls in given for place in range(calls)] + [0]
        assert held > 0
        close(mine.gradient, other.gradient)


@BOTH_LONG
@pytest.mark.parametrize("given", [[4], [3, 1]])
@pytest.mark.parametrize("ep", [1, 2])
def test_two_workers_reduce_once_a_call(pair: World, ep: int, given: list[int]) -> None:
    """And at the end of each call, for nobody knows whether there will be another: a cell that takes over what is left
    of a step has done its own before."""
    job = config(2, ep=ep, reduce_once=True)
    held = footprint(job, 2).parts[WHOLE]
    check(pair.run(reduced, job, given), pair.run(reduced, config(2, ep=ep), given), given, held)


@BOTH_LONG
def test_experts_that_are_split_twice(four: World) -> None:
    job = config(4, ep=2, reduce_once=True)
    held = footprint(job, 4).parts[WHOLE]
    check(four.run(reduced, job, [4]), four.run(reduced, config(4, ep=2), [4]), [4], held)


@BOTH_LONG
def test_gradients_in_bf16_are_added_up_in_float32(pair: World) -> None:
    """As many bytes of them are held, and their sum is as near to float32's as that of what is reduced one by one."""
    job = config(2, "bf16", reduce_once=True)
    exact = pair.run(reduced, config(2), [4])[0].gradient
    one_by_one = pair.run(reduced, config(2, "bf16"), [4])[0].gradient
    for run in pair.run(reduced, job, [4]):
        assert run.held == [0, *[footprint(job, 2).parts[WHOLE]] * 3, 0]
        for name, value in one_by_one.items():
            off = np.linalg.norm(value - exact[name])
            assert np.linalg.norm(run.gradient[name] - exact[name]) <= 1.1 * off + 1e-6, name


def test_what_it_takes_is_counted_and_refused() -> None:
    """The nearest setting does without."""
    without = footprint(ON_GPUS, 64)
    assert without.parts[WHOLE] == 0
    once = asked(ON_GPUS, True).model_copy(update={"device_gb": math.ceil(without.total / GB)})
    assert footprint(once, 64).total == pytest.approx(without.total + 1.03 * footprint(once, 64).parts[WHOLE])
    with pytest.raises(UserError, match=WHOLE):
        check_fits(once, 64)
    assert nearest(once, 64) == {"workload.parallel.reduce_once": False}


def test_a_gpu_with_room_for_it_does_so_by_itself() -> None:
    """What is asked for stays; a CPU, a pipeline and a cell of one worker go without."""
    without = footprint(ON_GPUS, 64)
    room = without.total + 1.04 * footprint(asked(ON_GPUS, True), 64).parts[WHOLE]
    for gb, once in ((math.ceil(without.total / GB), False), (math.ceil(room / GB), True)):
        here = ON_GPUS.model_copy(update={"device_gb": gb})
        assert settled(here, 64).parallel.reduce_once is once
        assert (check_fits(here, 64).parts[WHOLE] > 0) is once
        assert all(settled(asked(here, kept), 64) == asked(here, kept) for kept in (False, True))
    assert settled(here.model_copy(update={"device": "cpu"}), 64).parallel.reduce_once is False
    assert settled(config(2, pp=2).model_copy(update={"device": "cuda"}), 2).parallel.reduce_once is False
    assert settled(config(1).model_copy(update={"device": "cuda"}), 1).parallel.reduce_once is False


@pytest.mark.parametrize(
    ("workers", "parallel", "said"),
    [
        (2, {"pp": 2, "schedule": "1f1b"}, r"a pipeline \(pp 2\) reduces gradients once a step by itself"),
        (1, {}, "in a cell of one worker there is nothing to reduce"),
    ],
)
def test_it_is_refused_where_it_would_do_nothing(workers: int, parallel: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"workload.parallel.reduce_once: {said}"):
        check_layout(config(workers, reduce_once=True, **parallel), workers)
