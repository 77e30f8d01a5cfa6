"""Schedules at the report's milestones, batch ramp, guard, averages, AdamW with bf16 moments, YaRN."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from shoal_workloads.recipe import adamw
from shoal_workloads.recipe.adamw import AdamW, AdamWConfig
from shoal_workloads.recipe.batch import BatchConfig
from shoal_workloads.recipe.ema import Ema
from shoal_workloads.recipe.guard import Guard, GuardConfig
from shoal_workloads.recipe.schedule import ScheduleConfig
from tests.support import synthetic

T = 1e12


def test_learning_rate_is_the_reports() -> None:
    s, late = ScheduleConfig(), 10**6
    assert s.lr_at(999, 0) == pytest.approx(1.1e-4)
    for tokens, rate in [
        (1, 2.2e-4),
        (9.99, 2.2e-4),
        (12.15, 1.21e-4),
        (14.299999, 2.2e-5),
        (14.6, 2.2e-5),
        (14.7, 7.3e-6),
    ]:
        assert s.lr_at(late, tokens * T) == pytest.approx(rate, rel=1e-3)
    cosine = 2.2e-5 + 0.5 * 1.98e-4 * (1 + math.cos(math.pi * 1.3 / 4.3))
    assert s.lr_at(late, 11.3 * T) == pytest.approx(cosine, rel=1e-6)
    small = ScheduleConfig(budget=14.8e6, lr=1e-3, warmup_steps=0)
    assert small.lr_at(0, 14.7e6) == pytest.approx(1e-3 * 7.3 / 220)


def test_gamma_and_lambda() -> None:
    s = ScheduleConfig()
    assert [s.gamma_at(t * T) for t in (0, 14.29, 14.31)] == [1e-3, 1e-3, 0.0]
    assert [s.mtp_weight_at(t * T) for t in (0, 9.9, 10.1)] == pytest.approx([0.3, 0.3, 0.1])


def test_the_reports_batch_ramp() -> None:
    ramp = {"start": 3072, "tokens": 469e9}
    batch = BatchConfig.model_validate({"global_batch": 15360, "micro_batch": 1, "ramp": ramp})
    position, step, sizes = 0, 0, []
    while step < 20_000:  # every sample once, in order, whatever the batch
        first, last = batch.samples(step, 4096)
        assert first == position
        position, step = last, step + 1
        sizes.append(last - first)
    assert sizes[0] == 3072
    assert sizes[-1] == 15360
    assert sorted(set(sizes)) == [3072, 6144, 9216, 12288, 15360]
    assert sizes == sorted(sizes)
    assert sum(s for s in sizes if s < 15360) * 4096 == pytest.approx(469e9, rel=1e-3)
    with pytest.raises(ValidationError, match="does not divide"):
        BatchConfig.model_validate({"global_batch": 16, "micro_batch": 3})


def test_a_ramp_of_endless_stages_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        BatchConfig.model_validate({"global_batch": 8, "ramp": {"start": 2, "tokens": 1e6, "stages": 10**9}})


def test_guard() -> None:
    guard = Guard(GuardConfig(action="skip", settle=5))
    assert [guard.judge(3.0, 1.0) for _ in range(10)] == ["fine"] * 10
    before = guard.state.clone()
    assert guard.judge(16.0, 1.0) == "spike"
    assert guard.judge(3.0, 6.0) == "spike"
    assert guard.judge(math.nan, 1.0) == "not finite"
    assert guard.judge(3.0, math.inf) == "not finite"
    assert torch.equal(guard.state, before)
    assert not guard.applies("spike")
    reporting = Guard(GuardConfig(action="report"))
    assert reporting.applies("spike")
    assert not reporting.applies("not finite")


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    replica = synthetic.build(synthetic.tiny(ema_decay=0.9, guard={"action": "roll_back"}))
    synthetic.run_step(replica, 0)
    before = [t.clone() for t in replica.tensors()]
    replica.accumulate([range(8)])
    total = replica.sums() * math.nan
    metrics = replica.commit(total, replica.stats(), replica.norm_sq(total))
    assert (metrics["fault"], metrics["roll_back"]) == (2.0, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, replica.tensors(), strict=True))


def test_averages_follow_the_parameters() -> None:
    replica = synthetic.build(synthetic.tiny(ema_decay=0.75))
    expected = {shard.name: shard.local.clone() for shard in replica.shards}
    for step in range(3):
        synthetic.run_step(replica, step)
        for shard in replica.shards:
            expected[shard.name].mul_(0.75).add_(shard.local, alpha=0.25)
    state = replica.state_dict()
    for name, value in expected.items():
        assert torch.allclose(state[f"ema.{name}"], value, atol=1e-6), name
        assert not torch.equal(state[f"ema.{name}"], state[f"model.{name}"]), name


def test_averages_that_cannot_be_made_are_told_of() -> None:
    parameter = torch.zeros(2)
    averages = Ema([parameter], 0.5)
    averages.averages[0] = torch.zeros(3)
    averages.update()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="size of tensor"):
            averages.wait()


def test_adamw_rounds_alike_wherever_shards_are_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    whole, grad, m, v = (torch.randn(1001, generator=generator) for _ in range(4))

    def stepped(cut: int) -> list[torch.Tensor]:
        parts = [part.clone() for part in whole.split(cut)]
        optimizer = AdamW(parts, AdamWConfig())
        for place, (one, other) in enumerate(zip(m.split(cut), v.abs().split(cut), strict=True)):
            optimizer.m[place].copy_(one)
            optimizer.v[place].copy_(other)
        optimizer.step([part.clone() for part in grad.split(cut)], 1e-3, 3)
        return [torch.cat(parts), torch.cat(optimizer.m), torch.cat(optimizer.v)]

    expected = stepped(1001)
    assert not torch.equal(expected[0], whole)
    for cut in (1, 3, 64, 100, 999):
        assert all(torch.equal(one, other) for one, other in zip(stepped(cut), expected, strict=True)), cut


def test_adamw_against_torch_and_bf16_moments() -> None:
    torch.manual_seed(0)
    start, grads = [torch.randn(40, 30), torch.randn(30)], [[torch.randn(40, 30), torch.randn(30)] for _ in range(5)]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    groups = [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    ours = {kind: [p.clone() for p in start] for kind in ("fp32", "bf16")}
    optimizers = {kind: AdamW(ours[kind], AdamWConfig.model_validate({"moments": kind})) for kind in ours}
    for count, step in enumerate(grads, start=1):
        for p, g in zip(theirs, step, strict=True):
            p.grad = g.clone()
        reference.step()
        for optimizer in optimizers.values():
            optimizer.step(step, 1e-2, count)
    for a, b, c in zip(theirs, ours["fp32"], ours["bf16"], strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        assert torch.allclose(a, c, atol=2e-3)
        assert not torch.equal(b, c)
    assert optimizers["bf16"].m[0].dtype == torch.bfloat16


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_how_many_parameters_are_updated_at_once_changes_no_bit(moments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    start, grads = (
        [torch.randn(*shape, generator=generator) for shape in [(3, 4), (5,), (2, 7), (4, 4), (0, 4), (6,)]]
        for _ in range(2)
    )
    found = []
    for at_once in (adamw.AT_ONCE, 20, 1):
        monkeypatch.setattr(adamw, "AT_ONCE", at_once)
        optimizer = AdamW([p.clone() for p in start], AdamWConfig.model_validate({"moments": moments}))
        for count in (1, 2):
            optimizer.step(grads, 1e-2, count)
        found.append([*optimizer.parameters, *optimizer.m, *optimizer.v])
        assert all(len(run) == 1 for _, run in optimizer._runs()) == (at_once == 1)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
