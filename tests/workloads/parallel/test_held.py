"""What every rank of a cell holds of the model, in real processes, storage by storage, is what the closed form says, to
the byte: the layouts of `test_layouts.py` in their precisions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.testing import World, world
from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.footprint import footprints
from shoal_workloads.held import Held
from shoal_workloads.parallel.schedule import schedule_of
from shoal_workloads.parallel.schedule.balance import stage_layers
from shoal_workloads.params import count_parameters
from tests.support.holding import holding
from tests.workloads.parallel.test_layouts import SECTIONS, config, pp

LONG = pytest.mark.long


@pytest.fixture(scope="module")
def eight() -> Iterator[World]:
    """Eight processes, of which a layout takes as many as it wants."""
    with world(8) as found:
        yield found


def said(job: PretrainConfig, workers: int) -> list[dict[str, int]]:
    """Of every rank."""
    mesh, parallel = Mesh.of({"pp": job.parallel.pp, "ep": job.parallel.ep}, workers), job.parallel
    held = Held(job, mesh)
    if mesh.pp == 1:
        return [held.flat(rank) for rank in range(workers)]
    schedule = schedule_of(parallel, 1)
    layers = stage_layers(job.model, schedule.stages, job.data.seq_len)
    return [held.staged(rank, schedule, layers) for rank in range(workers)]


EVERY: list[tuple[int, int, dict[str, Any], str, str]] = [
    (2, 1, {}, "", "bf16"),
    (2, 1, {}, "ema", "fp32"),
    (2, 1, {"ep": 2}, "", "bf16"),
    (4, 1, {"ep": 4}, "", "fp32"),
    (4, 1, {"ep": 2}, "ema", "bf16"),
    (4, 1, {"ep": 4, "dispatch": "hierarchical", "ep_node": 2}, "", "fp32"),
    (2, 1, {"ep": 2}, "", "fp8"),
    (2, 1, {"reshard_after_forward": True}, "no mtp", "bf16"),
    (4, 1, {"ep": 2, "reshard_after_forward": True}, "no mtp", "fp32"),
    (2, 1, {"reduce_once": True}, "", "bf16"),
    (4, 2, {"ep": 2}, "", "fp32"),
    (2, 1, pp(2, "1f1b"), "", "fp32"),
    (2, 1, pp(2, "zb1p"), "", "bf16"),
    (2, 1, pp(2, "interleaved"), "", "fp32"),
    (2, 1, pp(2, "zbv"), "", "bf16"),
    (2, 1, pp(2, "dualpipev"), "", "fp32"),
    (2, 1, pp(2, "dualpipe"), "", "bf16"),
    (2, 1, pp(2, "1f1b"), "no mtp", "bf16"),
    (4, 1, pp(2, "dualpipe"), "no mtp", "fp32"),
    (4, 1, pp(4, "dualpipe"), "", "bf16"),
    (4, 1, pp(2, "dualpipe", ep=2), "ema", "bf16"),
    (4, 1, pp(2, "dualpipe", ep=2), "", "fp8"),
    (4, 1, pp(2, "zbv", ep=2, recompute="ffn", waiting=1), "ema", "fp32"),
    (8, 1, pp(2, "dualpipe", ep=4, dispatch="hierarchical", ep_node=2), "", "bf16"),
    (8, 1, pp(2, "dualpipe", ep=2), "", "fp32"),
    (8, 1, pp(4, "dualpipe", ep=2, recompute="dispatch", waiting=1), "", "fp8"),
    (4, 2, pp(2, "1f1b", ep=2), "", "bf16"),
]
QUICK = {2, 4, 8, 13, 20, 21, 22}
"""Of them those that show most: ZeRO and FSDP, experts split once and twice, stages held twice, FP8."""


@pytest.mark.parametrize(
    ("workers", "cells", "parallel", "sections", "precision"),
    [pytest.param(*one, marks=() if i in QUICK else LONG) for i, one in enumerate(EVERY)],
)
@pytest.mark.parametrize("moments", ["fp32", pytest.param("bf16", marks=LONG)])
def test_what_ranks_hold(
    eight: World,
    tmp_path: Path,
    workers: int,
    cells: int,
    parallel: dict[str, Any],
    sections: str,
    precision: str,
    moments: str,
) -> None:
    job = made(parallel, sections if precision != "fp8" else "fp8", precision, moments)
    found = [one for one in eight.run(holding, job, workers, cells, str(tmp_path)) if one is not None]
    check(job, workers, found)


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("fp8", marks=LONG)])
def test_what_a_worker_alone_holds(precision: str) -> None:
    job = made({}, "fp8" if precision == "fp8" else "ema", precision, "fp32")
    one = holding(job, 1, 1, "")
    assert one is not None
    check(job, 1, [one])


def made(parallel: dict[str, Any], sections: str, precision: str, moments: str) -> PretrainConfig:
    job = config(parallel, **{**SECTIONS[sections], "precision": precision})
    return job.model_copy(update={"optim": job.optim.model_copy(update={"moments": moments})})


def check(job: PretrainConfig, workers: int, found: list[dict[str, int]]) -> None:
    """Every rank, the footprint of each pipeline rank, and all masters of a cell together."""
    expected, fsdp = said(job, workers), job.parallel.pp == 1
    for rank, one in enumerate(found):
        assert one == expected[rank % workers], f"rank {rank}"
    each = workers // job.parallel.pp
    for place, of_footprint in enumerate(footprints(job, workers)):
        shared = {name: size for name, size in expected[place * each].items() if name in of_footprint.parts}
        assert {"parameters", "gradients", "master parameters", "moments", "buffers"} <= shared.keys()
        assert {name: of_footprint.parts[name] for name in shared} == shared
    count = count_parameters(job.model)
    moment = 2 * (4 if job.optim.moments == "fp32" else 2)
    assert sum(one["moments"] for one in found[:workers]) == moment * (count.total + count.mtp)
    if not fsdp:
        assert sum(one["master parameters"] for one in found[:workers]) == 4 * (count.total + count.mtp)
