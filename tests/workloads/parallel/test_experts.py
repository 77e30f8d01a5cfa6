"""Experts spread over workers give what one process gives, and send what the formulas say."""

from __future__ import annotations

from contextlib import suppress
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from shoal.testing import World
from shoal_workloads.config import DispatchKind
from shoal_workloads.model.moe import MoE
from shoal_workloads.parallel.exchange import make_exchange
from shoal_workloads.parallel.placement import identity, imbalance, place_experts
from shoal_workloads.parallel.traffic import row_bytes
from shoal_workloads.recipe.balance import max_violation, update_bias
from tests.support import experts_world, synthetic
from tests.support.backends import BOTH_LONG
from tests.support.experts_world import Answer, Case

SPREAD = [
    Case(ep=2, kind="flat", per_node=2),
    Case(ep=2, kind="hierarchical", per_node=1),
    Case(ep=4, kind="flat", per_node=2),
    Case(ep=4, kind="hierarchical", per_node=1),
    Case(ep=4, kind="hierarchical", per_node=2),
    Case(ep=4, kind="hierarchical", per_node=4),
]


def name(case: Case) -> str:
    return f"ep{case.ep}-{case.kind}-{case.per_node}"


def run(four: World, case: Case, **fields: object) -> Answer:
    return experts_world.together(four.run(experts_world.step, experts_world.config(**fields), case))


def same(found: Answer, expected: Answer, tolerance: float) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=tolerance)
    assert found.balance == pytest.approx(expected.balance, rel=tolerance)
    assert np.array_equal(found.loads, expected.loads)
    for key, value in expected.grads.items():
        assert np.abs(found.grads[key] - value).max() <= tolerance * (np.abs(value).max() + 1e-12), key


@pytest.fixture(scope="module")
def alone() -> Answer:
    return experts_world.step(experts_world.config(), Case())


@BOTH_LONG
@pytest.mark.parametrize("case", SPREAD, ids=name)
def test_loss_gradients_and_balancing_equal_one_process(four: World, alone: Answer, case: Case) -> None:
    found = run(four, case)
    same(found, alone, 1e-5)
    for mine, theirs in zip(found.loads, alone.loads, strict=True):
        biases = [torch.zeros(len(mine)), torch.zeros(len(mine))]
        update_bias(biases[0], torch.from_numpy(mine).float(), 1e-3)
        update_bias(biases[1], torch.from_numpy(theirs).float(), 1e-3)
        assert torch.equal(*biases)
        assert max_violation(torch.from_numpy(mine).float()) == max_violation(torch.from_numpy(theirs).float()) > 0


@BOTH_LONG
@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_no_token_is_dropped_where_all_want_the_same_experts(four: World, kind: DispatchKind) -> None:
    """Every token wants the four experts of the first two workers: the others get no row at all."""
    case = Case(bias=100.0, favoured=4)
    alone = experts_world.step(experts_world.config(), case)
    assert alone.loads[:, 4:].sum() == 0
    same(run(four, case._replace(ep=4, kind=kind, per_node=2)), alone, 1e-5)


@BOTH_LONG
@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_bf16(four: World, kind: DispatchKind) -> None:
    case = Case(dtype=torch.bfloat16)
    expected = experts_world.step(experts_world.config(), case)
    found = run(four, case._replace(ep=4, kind=kind, per_node=2))
    assert found.loss == pytest.approx(expected.loss, rel=2e-2)


def other_nodes(answer: Answer, ep: int, per_node: int, experts: int) -> tuple[int, int]:
    """Over all tokens and routers: nodes other than a token's own that it uses, and experts on them, counted from the
    routing alone. Tokens lie on workers in order, equally many on each."""
    copies = slots = 0
    for chosen in answer.experts:
        node = chosen // (experts // (ep // per_node))
        own = (np.arange(len(chosen)) // (len(chosen) // ep) // per_node)[:, None]
        slots += int((node != own).sum())
        copies += sum(len(set(row) - {int(mine)}) for row, (mine,) in zip(node, own, strict=True))
    return copies, slots


def test_the_facts_bytes_of_a_row() -> None:
    """n = 4 target nodes at V3's width: 29,568 and 57,344 bytes, 173,824 forward and backward."""
    dispatch, combine = 4 * row_bytes(7168, fp8=True), 4 * row_bytes(7168, fp8=False)
    assert (dispatch, combine, 2 * (dispatch + combine)) == (29_568, 57_344, 173_824)


@BOTH_LONG
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_bytes_across_nodes_equal_the_formula(four: World, fp8: bool) -> None:
    """Experts in 4 groups, 2 nodes of 2 workers and 4 nodes of 1. Both ways of sending, both passes."""
    width = 256
    fields = {"d_model": width, "n_layers": 2, "n_experts": 16, "top_k": 4, "topk_groups": 3}
    for per_node in (1, 2):
        base = Case(ep=4, per_node=per_node, fp8=fp8, dtype=torch.bfloat16)
        sent = {}
        for kind in ("flat", "hierarchical"):
            answer = run(four, base._replace(kind=kind), **fields)
            copies, slots = other_nodes(answer, 4, per_node, 16)
            rows = copies if kind == "hierarchical" else slots
            for direction in ("forward", "backward"):
                dispatched = answer.traffic[f"dispatch.{direction}.across"]
                assert dispatched == rows * (width + 4 * width // 128 if fp8 else 2 * width)
                assert answer.traffic[f"combine.{direction}.across"] == rows * 2 * width
            sent[kind] = answer.traffic["dispatch.forward.across"]
            assert answer.traffic["metadata.forward.across"] > 0
            if per_node == 1:
                assert answer.traffic.get("dispatch.forward.inside", 0) == 0
        if per_node == 1:  # a token uses 4 experts on at most 3 nodes
            assert sent["hierarchical"] <= 3 / 4 * sent["flat"]


@BOTH_LONG
def test_fp8_arrives_the_same_by_either_way(four: World) -> None:
    """Power-of-2 scales: rows sent on are not rounded again, so the two ways differ in the order of sums alone."""
    case = Case(fp8=True)
    fields = {"d_model": 128, "d_expert": 128}
    alone = experts_world.step(experts_world.config(**fields), case)
    flat, hierarchical = (
        run(four, case._replace(ep=4, kind=kind, per_node=2), **fields) for kind in ("flat", "hierarchical")
    )
    assert hierarchical.loss == pytest.approx(flat.loss, rel=1e-4)
    assert flat.loss == pytest.approx(alone.loss, rel=1e-2)
    assert flat.loss != alone.loss


@BOTH_LONG
def test_rows_travel_while_shared_experts_compute(four: World) -> None:
    c = experts_world.config()
    for forward, backward in four.run(experts_world.order_of_calls, c, Case(ep=4, kind="flat", per_node=2)):
        assert forward == ["send", "shared", "wait", "experts", "send", "balance", "wait"]
        assert backward == ["send", "balance", "wait", "experts", "send", "shared", "wait"]
    for forward, backward in four.run(experts_world.order_of_calls, c, Case(ep=4, kind="hierarchical", per_node=2)):
        inside = ["send", "wait"]
        assert forward == ["send", "shared", "wait", *inside, "experts", *inside, "send", "balance", "wait"]
        assert backward == ["send", "balance", "wait", *inside, "experts", *inside, "send", "shared", "wait"]


def test_nodes_that_do_not_divide_the_group_are_refused(four: World) -> None:
    for answer in four.run(experts_world.refused, 3):
        assert "parallel.ep_node: 3 workers a node do not divide the 4" in answer
        assert "1, 2, 4" in answer


def test_placement_packs_by_load() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        loads = (random.pareto(1.5, 64) * 100).tolist()
        found = place_experts(loads, ranks=8, per_node=4)
        assert sorted(found.tolist()) == list(range(64))
        assert imbalance(loads, found, 8) <= imbalance(loads, identity(64), 8)
        floor = max(max(loads), sum(loads) / 8) / (sum(loads) / 8) - 1
        assert imbalance(loads, found, 8) <= floor + 0.35
    assert torch.equal(place_experts([1.0] * 8, 4, 2), identity(8))


def test_placement_is_near_the_best_of_all() -> None:
    """Greedy packing is at most 4/3 of the best where nothing limits room (Graham); here, of all placements."""
    random = np.random.default_rng(1)
    for _ in range(4):
        loads = random.integers(1, 100, 6).tolist()
        best = min(imbalance(loads, torch.tensor(p), 3) for p in permutations(range(6)))
        assert 1 + imbalance(loads, place_experts(loads, 3, 3), 3) <= 4 / 3 * (1 + best)


def test_placement_keeps_groups_of_node_limited_routing_on_one_node() -> None:
    loads = (np.random.default_rng(2).pareto(1.0, 64) * 100).tolist()
    found = place_experts(loads, ranks=8, per_node=2, groups=8)
    assert not torch.equal(found, identity(64))
    for group in found.view(8, 8):
        assert len(set((group // 16).tolist())) == 1


@BOTH_LONG
@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_another_placement_changes_no_number(four: World, alone: Answer, kind: DispatchKind) -> None:
    loads = alone.loads.sum(axis=0).tolist()
    slots = tuple(place_experts(loads, ranks=4, per_node=2).tolist())
    assert slots != tuple(range(8))
    same(run(four, Case(ep=4, kind=kind, per_node=2, placement=slots)), alone, 1e-5)
    shuffled = (5, 2, 7, 0, 3, 6, 1, 4)
    same(run(four, Case(ep=4, kind=kind, per_node=2, placement=shuffled)), alone, 1e-5)


@BOTH_LONG
def test_a_step_tells_what_its_experts_sent(four: World) -> None:
    config = synthetic.tiny(parallel={"ep": 4, "ep_node": 2, "dispatch": "hierarchical"})
    answers = four.run(experts_world.told, config)
    for scope in ("across", "inside"):
        sent = sum(size for _, taken in answers for key, size in taken.items() if key.endswith(scope))
        assert sent > 0
        assert [metrics[f"exchange_{scope}"] for metrics, _ in answers] == [sent] * 4
    assert not any(name.startswith("exchange_") for name in synthetic.run_step(synthetic.build(synthetic.tiny()), 0))


def test_a_step_tells_the_imbalance_of_every_router() -> None:
    metrics = synthetic.run_step(synthetic.build(synthetic.tiny()), 0)
    by_router = [metrics[f"max_violation.{i}"] for i in range(3)]
    assert "max_violation.3" not in metrics
    assert sum(by_router) / 3 == pytest.approx(metrics["max_violation"])
    assert len(set(by_router)) > 1


@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
@pytest.mark.parametrize("garbage", [(123,), (-1, 1), (2**62,), (0,), (1, 123), (0, 0, 1), (1, 1, 123), (3, 2, 40)])
def test_what_an_aborted_exchange_leaves_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, kind: DispatchKind, garbage: tuple[int, ...]
) -> None:
    """Every exchange leaves something else and says nothing, as NCCL does. The cell is taken for broken then, or goes
    on with numbers of no meaning: nothing leads beyond its memory, which would cost a GPU its process."""
    left = iter(garbage * 100)

    class Done:
        def wait(self) -> None:
            pass

    def abort(out: torch.Tensor, *_: object, **__: object) -> Done:
        out.fill_(next(left))
        return Done()

    monkeypatch.setattr(dist, "all_to_all_single", abort)
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    try:
        layer = MoE(experts_world.config(), make_exchange(dist.group.WORLD, kind=kind, per_node=2))  # type: ignore[arg-type]
        for p in layer.parameters():
            p.data.normal_()
        x = torch.randn(1, 24, 32, requires_grad=True)
        with suppress(dist.DistBackendError):
            layer(x)[0].sum().backward()
    finally:
        dist.destroy_process_group()
