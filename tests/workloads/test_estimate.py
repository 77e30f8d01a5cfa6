"""What a step takes and a run costs, against closed forms, published figures and a search by trying all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate import Cluster, bill, estimate, hardware, memory_over_step
from shoal_workloads.estimate.layer import Layers
from shoal_workloads.estimate.moved import Moved
from shoal_workloads.estimate.published import DEEPSEEK_V3, SOURCES, compared, deepseek_v3
from shoal_workloads.estimate.scaling import scaled
from shoal_workloads.estimate.search import layouts, search, smallest
from shoal_workloads.parallel.check import check_layout
from shoal_workloads.parallel.schedule.balance import layer_flops


def job(**changes: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(DEEPSEEK_V3 | changes)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("preset", ["deepseek-v3", "v3-small-16b"])
def test_a_layers_products_are_its_flops(preset: str, dense: bool) -> None:
    config = job(model={"preset": preset}, parallel={"ep": 8}, precision="bf16")
    layers, model = Layers(config, Mesh(ep=8), hardware("H800"), 8), config.model
    flops = sum(2.0 * one.m * one.n * one.k * one.times for one in layers.products(dense))
    core = model.n_heads * (model.d_head + model.d_rope + model.d_v) * 4096
    router = 0 if dense else 2 * model.n_experts * model.d_model
    expected = layer_flops(model, 0 if dense else model.n_dense) - core - router
    assert flops / layers.tokens == pytest.approx(expected, rel=1e-12)


def test_published_figures_come_out_with_two_constants() -> None:
    every = compared()
    assert {one.source.split()[0] for one in every} == set(SOURCES)
    steps = [abs(one.error) for one in every if one.source == "H"]  # of our own, which docs/planning.md sums up
    assert len(steps) == 33
    assert max(steps) < 0.17
    figures = {one.name: one for one in every if one.source != "H"}
    assert sum(one.fitted for one in figures.values()) == 2
    assert figures["parameters"].error == 0
    exact = [one for one in figures.values() if one.of.startswith("DualPipe")]
    assert len(exact) == 4
    assert all(one.error == 0 for one in exact)
    missed = {"memory, at most", "products", "attention, forward", "all other kernels", "all of it"}
    for one in figures.values():  # what is missed docs/planning.md tells
        assert abs(one.error) < (0.31 if one.name in missed or one.of.startswith("Others") else 0.05), one


def test_what_a_layer_moves_is_what_its_kernels_read_and_write() -> None:
    """Counted apart: of one head, one expert a token and FP8, each kernel's inputs and outputs in bytes."""
    model = job(model={"preset": "deepseek-v3"}).model.model_copy(
        update={"d_model": 64, "n_heads": 1, "d_head": 16, "d_rope": 8, "d_v": 16, "d_q": 32, "d_kv": 24}
        | {"n_shared": 1, "d_expert": 40, "top_k": 1}
    )
    norm, add, cast = 4, 6, 3  # bytes a number: bf16 in and out; two in, one out; bf16 in, a code out
    swiglu = 2 * 80 + 40 + cast * 80
    forward = norm * (64 + 64 + 32 + 24) + 2 * add * 64 + cast * (64 + 64 + 32 + 24 + 16 + 64 + 64) + 4 * 16
    forward += norm * 8 + norm * 16 + 2 * 8 + norm * 16 + 2 * swiglu + (1 + 1 + 2 + 2) * 64
    assert Moved(model, fp8=True).forward(dense=False) == forward
    back = Moved(model, fp8=True)
    again = norm * (64 + 64 + 32 + 24) + cast * (64 + 64 + 32 + 24) + norm * 8 + norm * 16 + 2 * 8 + norm * 16
    assert back.input(dense=False, again=True) - back.input(dense=False, again=False) == again
    assert Moved(model, fp8=False).weight(dense=False) == 0
    assert Moved(model, fp8=False).forward(dense=False) < forward


def test_products_with_a_scale_for_every_row_and_column_add_up_longer() -> None:
    """DeepSeek's trace, milliseconds a layer: 5.02 forward, 6.87 less 1.22 of adding up float32 for weights."""
    config = job()
    layers = Layers(config, Mesh(16, 1, 64), hardware("H800"), 8)
    forward, weight = (layers.forward(dense=False)["products"], layers.weight(dense=False)["products"])
    assert weight / forward == pytest.approx((6.87 - 1.22) / 5.02, rel=0.05)
    wide = hardware("H800").model_copy(update={"tflops": hardware("H800").tflops.model_copy(update={"fp32": None})})
    bare = Layers(config, Mesh(16, 1, 64), wide, 8)
    assert bare.weight(dense=False)["products"] == pytest.approx(bare.forward(dense=False)["products"], rel=0.02)


def test_a_step_is_its_parts_and_a_bill_its_hours() -> None:
    found = deepseek_v3()
    assert sum(found.step.values()) == pytest.approx(found.seconds)
    assert sum(found.phases.values()) == pytest.approx(
        sum(found.step[name] for name in ("products", "attention", "element-wise", "exchange", "bubble")), rel=1e-9
    )
    whole = bill(found, 14.8e12, 2.0)
    assert whole.dollars == pytest.approx(2.0 * 2048 * 14.8e12 / found.tokens_per_second / 3600)


def test_of_the_exchange_a_step_counts_what_nothing_hides() -> None:
    found = deepseek_v3()
    assert found.pipeline is not None
    exchange, spans = found.pipeline.exchange, found.pipeline.timeline.spans
    assert [len(rank) for rank in exchange] == [len(rank) for rank in spans]
    exposed = sum(one.exposed for rank in exchange for one in rank) / len(exchange)
    assert exposed == pytest.approx(found.step["exchange"])
    every = [one for rank in exchange for one in rank]
    assert all(one.hidden >= 0 and one.exposed >= 0 for one in every)
    paired = [one for rank, row in zip(spans, exchange, strict=True) for span, one in zip(rank, row, strict=True)
              if "&" in str(span.step)]  # fmt: skip
    assert sum(one.hidden for one in paired) > 0.9 * sum(one.hidden + one.exposed for one in paired)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb1p", "zbv", "dualpipev", "dualpipe"])
def test_memory_over_a_step_begins_and_ends_low_and_its_most_is_what_must_fit(schedule: str) -> None:
    parallel = {"pp": 4, "ep": 8, "schedule": schedule, "recompute": "dispatch"}
    config = job(model={"preset": "v3-small-16b"}, batch={"global_batch": 256}, precision="bf16", parallel=parallel)
    found = estimate(config, Cluster(8, 8, "H800", hardware("H800")), 32)
    over = memory_over_step(found)
    held = [(time, sum(parts.values())) for time, parts in over]
    assert found.pipeline is not None
    assert [time for time, _ in held] == sorted(time for time, _ in held)
    assert held[-1][0] == found.pipeline.timeline.makespan
    assert max(size for _, size in held) == pytest.approx(found.memory.total, rel=1e-9)
    assert held[-2][1] < held[len(held) // 2][1]  # nothing of a micro-batch is left
    kept = {name: size for name, size in over[-2][1].items() if name.startswith("activations")}
    assert kept
    assert not any(kept.values())


def test_rows_to_more_experts_stay_as_hidden_and_to_finer_ones_only_node_by_node() -> None:
    config = job()
    found = list(scaled(config, Cluster(256, 8, "H800", hardware("H800")), 64))
    more, finer = ([one for one in found if one.way == way] for way in ("more experts", "finer experts"))
    assert [one.nodes for one in more] == [one.nodes for one in finer] == [8, 16, 32, 64]
    assert len({one.parameters - one.experts * config.model.d_model * 58 for one in finer}) == 1  # but for the routers
    for one in more:  # a token has as many copies to send but for the share of its own node: a closed form
        away = (1 - 1 / one.nodes) / (1 - 1 / 8)
        assert one.flat == pytest.approx(more[0].flat * away)
        assert one.hierarchical == pytest.approx(more[0].hierarchical * away)
        assert (one.copies_flat, one.copies) == (8 * (1 - 1 / one.nodes), 4 * (1 - 1 / one.nodes))
    assert finer[0].flat == more[0].flat
    assert finer[-1].copies_flat == pytest.approx(8 * more[-1].copies_flat)
    assert finer[-1].copies == more[-1].copies
    assert finer[-1].flat / finer[-1].hierarchical > more[-1].flat / more[-1].hierarchical


def test_the_search_finds_what_trying_all_finds() -> None:
    base = job(model={"preset": "laptop-100m"}, batch={"global_batch": 64}, precision="bf16", parallel={})
    gpu = hardware("A100")
    tried = []
    for changes, workers in layouts(base, Cluster(2, 2, "A100", gpu)):
        config = base.model_copy(update={"parallel": base.parallel.model_copy(update=changes)})
        try:
            check_layout(config, workers)
        except UserError:
            continue
        tried.append(estimate(config, Cluster(2, 2, "A100", gpu), workers))
    sizes = sorted(one.memory.total for one in tried)
    for memory in (sizes[len(sizes) // 3], sizes[-1]):  # so that some do not fit
        cluster = Cluster(2, 2, "A100", gpu.model_copy(update={"memory_gb": memory / 1e9}))
        expected = sorted(one.seconds for one in tried if one.memory.total <= memory)[:3]
        assert [one.seconds for one in search(base, cluster).best] == pytest.approx(expected)
    small = Cluster(2, 2, "A100", gpu.model_copy(update={"memory_gb": 1.0}))
    assert not search(base, small).best


def test_the_smallest_cluster_is_the_first_of_all_that_fits() -> None:
    base = job(model={"preset": "v3-small-16b"}, batch={"global_batch": 32}, precision="bf16", parallel={})
    gpu = hardware("A100")
    fitting = [nodes for nodes in range(1, 9) if search(base, Cluster(nodes, 1, "A100", gpu), keep=1).best]
    found = smallest(base, Cluster(1, 1, "A100", gpu))
    assert found is not None
    assert fitting[0] == found.nodes > 1
    assert smallest(base, Cluster(1, 1, "A100", gpu.model_copy(update={"memory_gb": 4.0}))) is None


def test_hardware_of_ones_own_and_names_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="H800"):
        hardware("H80")
    own = tmp_path / "own.yaml"
    own.write_text("mine: {tflops: {bf16: 1}, sms: 1}")
    with pytest.raises(UserError, match=r"own.yaml: mine.reached"):
        hardware("mine", own)
    with pytest.raises(UserError, match="cannot be read"):
        hardware("mine", tmp_path / "none.yaml")


def test_without_room_for_a_cell_the_field_is_named() -> None:
    with pytest.raises(UserError, match=r"--cluster: 8 GPUs make no cell of 1024"):
        estimate(job(), Cluster(1, 8, "H800", hardware("H800")), 1024)
    with pytest.raises(UserError, match="global_batch: 1000 samples"):
        estimate(job(batch={"global_batch": 1000}), Cluster(256, 8, "H800", hardware("H800")), 1024)
