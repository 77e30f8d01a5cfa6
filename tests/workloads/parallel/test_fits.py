"""A worker's memory in closed form: what it holds is what is really made, and what does not fit is refused with the
nearest setting that would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from shoal_core.errors import UserError
from shoal_workloads.config import PretrainConfig
from shoal_workloads.footprint import GB, footprint, footprints
from shoal_workloads.parallel.fits import check_fits, nearest
from shoal_workloads.parallel.layout import layout_of, shard_model
from shoal_workloads.parallel.pipeline.pipeline import Pipeline
from shoal_workloads.parallel.schedule import Action, bounded, build, check
from shoal_workloads.precision.fp8 import EmulatedFp8
from shoal_workloads.precision.products import Products
from shoal_workloads.pretrain import Pretrain
from tests.support.holding import stored


def config(model: dict[str, Any], parallel: dict[str, Any], **more: Any) -> PretrainConfig:
    sections = {
        "model": model,
        "data": {"corpus": "none", "seq_len": 4096},
        "batch": {"global_batch": 15360},
        "parallel": parallel,
        "precision": "bf16",
        "device": "cuda",
    }
    return PretrainConfig.model_validate(sections | more)


def v3(**parallel: Any) -> PretrainConfig:
    """The report's layout."""
    return config({"preset": "deepseek-v3"}, {"pp": 16, "ep": 64, "schedule": "dualpipe", **parallel})


@contextmanager
def rank_of(workers: int, rank: int) -> Iterator[None]:
    """This process as one of many that are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=workers)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("schedule", "workers"), [("dualpipe", 8), ("dualpipe", 16), ("1f1b", 8), ("zbv", 8)])
def test_what_a_pipeline_rank_holds(schedule: str, workers: int) -> None:
    job = config({"preset": "laptop-1m", "n_layers": 9}, {"pp": 4, "ep": 2, "schedule": schedule})
    expected = footprints(job, workers)
    for place in range(4):
        rank = place * workers // 4
        with rank_of(workers, rank):
            engine = Pipeline(job.model_copy(update={"device": "cpu"}), rank, workers, torch.bfloat16, Products())
        zero, parts = engine.zero, expected[place].parts
        held = [p for bucket in zero._buckets for p in bucket.parameters]
        masters = sum(shard.local.nbytes for shard in zero.shards)
        assert parts["parameters"] == sum(p.nbytes for p in held)
        assert parts["gradients"] == sum(total.nbytes for _, total in zero._sums) + sum(
            p.nbytes for p in held if p.dtype == torch.float32
        )
        assert parts["master parameters"] == masters
        assert parts["moments"] == 2 * masters


def test_what_a_pipeline_rank_holds_of_weights_in_fp8() -> None:
    widths = {"d_model": 128, "d_expert": 128, "d_ffn": 128, "d_kv": 128, "d_q": 128, "n_heads": 2, "d_v": 64}
    model = {"preset": "demo", "n_layers": 9, **widths}
    job = config(model, {"pp": 4, "ep": 2, "schedule": "dualpipe"}, precision="fp8")
    for place in (0, 1):
        products = EmulatedFp8()
        with rank_of(8, 2 * place):
            engine = Pipeline(job.model_copy(update={"device": "cpu"}), 2 * place, 8, torch.bfloat16, products)
            engine.updated()
            engine._gather()
        codes = stored(one for pair in products._settled.values() for one in pair)
        assert footprints(job, 8)[place].parts["parameters in FP8"] == codes > 0


@pytest.mark.parametrize(("workers", "ep"), [(4, 1), (4, 2), (2, 2)])
def test_what_a_worker_without_stages_holds(workers: int, ep: int) -> None:
    job = config({"preset": "laptop-1m"}, {"ep": ep})
    parts = footprint(job, workers).parts
    with rank_of(workers, 0):
        _, shards = shard_model(job.model, layout_of("cpu", job.parallel), device="meta", dtype=torch.bfloat16)
    masters = sum(shard.local.nbytes for shard in shards)
    assert parts["master parameters"] == masters
    assert parts["moments"] == 2 * masters


def test_v3_fits_in_80_gb_where_it_makes_enough_again() -> None:
    """The report's layout in bf16, 4,096 tokens: in cells of 1,024 and of 2,048, on every pipeline rank."""
    for workers in (1024, 2048):
        for least in footprints(v3(recompute="dispatch", waiting=2), workers):
            assert least.total < 76 * GB
        eighths = footprint(v3(recompute="dispatch", waiting=2).model_copy(update={"precision": "fp8"}), workers)
        assert eighths.total < 80 * GB
    totals = [footprint(v3(recompute=level, waiting=2), 1024).total for level in (False, True, "ffn", "dispatch")]
    assert totals == sorted(totals, reverse=True)
    assert footprint(v3(recompute="dispatch", waiting=2), 2048).parts["parameters"] < 10 * GB


def test_what_does_not_fit_is_refused_before_a_corpus_is_opened() -> None:
    """With its parts, which add up, and a setting that is then accepted."""
    with pytest.raises(UserError) as error:
        Pretrain(v3()).preflight(1024)
    found = re.search(r"needs ([\d.]+) GB of the 80 that a GPU has \((.*)\)", error.value.problem)
    assert found is not None
    assert sum(float(size) for size in re.findall(r"[\d.]+(?=,|$)", found[2])) == pytest.approx(float(found[1]), abs=1)
    assert error.value.remedy == "it fits with workload.parallel.recompute=dispatch, workload.parallel.waiting=2"
    check_fits(v3(recompute="dispatch", waiting=2), 1024)


def test_nearest_settings() -> None:
    """The fewest changes, of the whole job: without stages, with larger micro-batches, in larger cells, or none."""
    small = {"preset": "v3-small-16b"}
    assert nearest(config(small, {"ep": 8}), 8) is not None
    wide = config(small, {"ep": 8, "recompute": "dispatch"}, batch={"global_batch": 4096, "micro_batch": 32})
    assert nearest(wide, 64) == {"workload.batch.micro_batch": 16}
    flat = config({"preset": "deepseek-v3"}, {"ep": 64, "recompute": "dispatch"})
    assert nearest(flat, 1024) == {"workload.parallel.reshard_after_forward": True}
    with pytest.raises(UserError, match=r"no change of recomputation"):
        check_fits(config({"preset": "deepseek-v3"}, {"ep": 8}), 8)


@pytest.mark.parametrize("name", ["zb1p", "zbv", "dualpipe", "dualpipev"])
@pytest.mark.parametrize("most", [0, 1, 3])
def test_waiting_gradients_are_bounded(name: str, most: int) -> None:
    """And what travels, in which order, is not changed."""
    schedule = build(name, 8, 20)
    less = bounded(schedule, most)
    check(less)
    assert bounded(schedule, None) is schedule
    for order, before in zip(less.orders, schedule.orders, strict=True):
        waiting = peak = 0
        for step in order:
            if isinstance(step, Action):
                waiting += {"I": 1, "W": -1}.get(step.kind, 0)
            peak = max(peak, waiting)
        assert waiting == 0
        assert peak <= most
        assert [str(step).replace("I", "B") for step in order if not str(step).startswith("W")] == [
            str(step).replace("I", "B") for step in before if not str(step).startswith("W")
        ]
