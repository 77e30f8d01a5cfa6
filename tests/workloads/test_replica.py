"""A cell of several workers does exactly what one worker does; state travels whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.testing import World
from shoal_core.ckpt import alone, together
from shoal_core.ckpt.folder import Folder
from shoal_core.ckpt.together import ALONE
from shoal_workloads import replica
from shoal_workloads.model.recompute import Level
from shoal_workloads.pretrain import Pretrain
from tests.support import synthetic
from tests.support.backends import BOTH_LONG


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max() + 1e-12
        assert np.abs(found[name] - value).max() / scale < tolerance, name


@BOTH_LONG
@pytest.mark.parametrize("ep", [1, 2])
def test_gradients_and_steps_of_two_workers_equal_one(pair: World, ep: int) -> None:
    alone = synthetic.gradients(synthetic.tiny())
    assert alone["loads"].sum() == (2 * 16 + 15) * 8 * 2  # 2 MoE layers of 16 and an MTP layer of 15 positions, top 2
    for answer in pair.run(synthetic.gradients, synthetic.tiny(parallel={"ep": ep})):
        assert np.array_equal(answer["loads"], alone["loads"])
        close(answer, alone, 1e-5)

    metrics, state, figures = synthetic.train(synthetic.tiny(), 4)
    for found, found_state, found_figures in pair.run(synthetic.train, synthetic.tiny(parallel={"ep": ep}), 4):
        for a, b in zip(found, metrics, strict=True):
            assert {name: a[name] for name in b} == pytest.approx(b, rel=1e-4)
        close(found_state, state, 2e-3)  # Adam turns the smallest gradients, and their rounding, into full steps
        assert found_figures == pytest.approx(figures, rel=1e-4)


@BOTH_LONG
def test_gradients_of_experts_split_twice_equal_one(four: World) -> None:
    """efsdp and ep together: every expert split over two workers, the experts over two groups."""
    alone = synthetic.gradients(synthetic.tiny())
    for answer in four.run(synthetic.gradients, synthetic.tiny(parallel={"ep": 2})):
        close(answer, alone, 1e-5)


def test_it_learns() -> None:
    config = synthetic.tiny(schedule={"lr": 1e-2}, batch={"micro_batch": 8})
    metrics, _, _ = synthetic.train(config, 60)
    assert metrics[0]["lm_loss"] == pytest.approx(np.log(synthetic.VOCAB), rel=0.1)
    assert metrics[-1]["lm_loss"] < 0.5 * metrics[0]["lm_loss"]
    assert metrics[-1]["mtp_loss"] < 0.7 * metrics[0]["mtp_loss"]


@BOTH_LONG
@pytest.mark.parametrize("workers", [1, 2])
def test_a_twin_continues_bit_for_bit(pair: World, workers: int) -> None:
    config = synthetic.tiny(parallel={"ep": workers})
    assert all(pair.run(synthetic.twin, config)) if workers == 2 else synthetic.twin(config)


@BOTH_LONG
def test_checkpoint_loads_on_another_cell(pair: World, tmp_path: Path) -> None:
    def check(saved: dict[str, Any], loaded: tuple[dict[str, Any], dict[str, float]]) -> dict[str, float]:
        assert saved.keys() == loaded[0].keys()
        assert all(np.array_equal(saved[name], loaded[0][name]) for name in saved)
        return loaded[1]

    averaged: dict[str, Any] = {"ema_decay": 0.9}
    job = synthetic.tiny(parallel={"ep": 2}, **averaged)
    saved = pair.run(synthetic.save, job, 3, str(tmp_path / "two"))[0]
    after_one = check(saved, synthetic.load(synthetic.tiny(**averaged), 3, str(tmp_path / "two")))
    for answer in pair.run(synthetic.load, synthetic.tiny(parallel={"ep": 1}, **averaged), 3, str(tmp_path / "two")):
        assert check(saved, answer) == pytest.approx(after_one, rel=1e-5)


def test_what_goes_on_from_a_checkpoint_has_all_of_the_state(tmp_path: Path) -> None:
    """Each part of it, in the memory that it had; two more steps and what they leave are the same to the bit."""
    config = synthetic.tiny(ema_decay=0.9, optim={"moments": "bf16"}, guard={"settle": 1})
    first, second = synthetic.build(config), synthetic.with_samples(Pretrain(config).build_to_fill(seed=7))
    for step in range(3):
        synthetic.run_step(first, step)
    state = first.state_dict()
    assert {name.partition(".")[0] for name in state} == {"model", "adam_m", "adam_v", "ema", "router_bias", "guard"}
    assert all(tensor.any() for tensor in state.values()), "nothing is still as it began"
    folder = Folder.at(tmp_path / "step-00000003")
    alone.write(folder, state, {"steps": 3})
    places = [tensor.data_ptr() for tensor in second.tensors()]
    second.loaded(together.load(folder, second.state_dict(), ALONE, lambda _: False).steps)
    assert [tensor.data_ptr() for tensor in second.tensors()] == places
    for step in (3, 4):
        for mine, saved in zip(second.tensors(), first.tensors(), strict=True):
            assert torch.equal(mine, saved)
        assert synthetic.run_step(second, step) == synthetic.run_step(first, step)


def test_no_values_are_drawn_where_state_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard built to be filled goes on as the one whose state it is given."""
    config = synthetic.tiny(ema_decay=0.9)
    first = synthetic.build(config)
    synthetic.run_step(first, 0)
    monkeypatch.setattr(replica, "init_shards", lambda *given: pytest.fail("values were drawn"))
    second = synthetic.with_samples(Pretrain(config).build_to_fill(seed=7))
    for mine, other in zip(second.tensors(), first.tensors(), strict=True):
        mine.copy_(other)
    second.loaded(1)
    assert synthetic.run_step(second, 1) == synthetic.run_step(first, 1)
    assert all(torch.equal(a, b) for a, b in zip(second.tensors(), first.tensors(), strict=True))


def test_sums_that_are_kept_may_be_written_to() -> None:
    """As other cells' are added to them, and left as garbage: what is done stays done."""
    shard = synthetic.build(synthetic.tiny())
    shard.accumulate([[0, 1]])
    kept = shard.sums_to_keep()
    first = kept.clone()
    kept.fill_(np.nan)
    assert torch.equal(shard.sums_to_keep(), first)


def test_sums_repeat_and_begin_forgets() -> None:
    shard = synthetic.build(synthetic.tiny())
    shard.accumulate([[0, 1]])
    first = shard.sums().clone()
    assert np.array_equal(shard.sums().numpy(), first.numpy())
    shard.accumulate([[2, 3]])
    assert not np.array_equal(shard.sums().numpy(), first.numpy())
    shard.begin(0)
    assert not shard.sums().any()
    assert shard.stats() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("recompute", [True, "ffn"])
def test_recomputing_changes_no_gradient(recompute: Level) -> None:
    plain = synthetic.gradients(synthetic.tiny())
    again = synthetic.gradients(synthetic.tiny(parallel={"recompute": recompute}))
    assert all(np.array_equal(plain[name], again[name]) for name in plain)


@BOTH_LONG
@pytest.mark.parametrize("dispatch", ["flat", "hierarchical"])
def test_rows_that_travel_again_change_no_gradient(pair: World, dispatch: str) -> None:
    parallel = {"ep": 2, "dispatch": dispatch, "ep_node": 1}
    plain = pair.run(synthetic.gradients, synthetic.tiny(parallel=parallel))
    again = pair.run(synthetic.gradients, synthetic.tiny(parallel=parallel | {"recompute": "dispatch"}))
    for before, after in zip(plain, again, strict=True):
        assert all(np.array_equal(before[name], after[name]) for name in before)


@BOTH_LONG
def test_rows_travel_in_fp8(pair: World) -> None:
    """What is dispatched arrives rounded to E4M3 with power-of-2 scales, its gradient as it was sent; what is combined
    arrives as it was, its gradient rounded."""
    for exact_when_plain, dispatched, combined in pair.run(synthetic.exchange):
        assert exact_when_plain
        assert dispatched == (True, False)
        assert combined == (False, True)


@BOTH_LONG
def test_nothing_outlives_a_replica(pair: World) -> None:
    """A worker is rebuilt in new worlds many times: a dropped replica must not keep the old one's groups alive."""
    for answer in pair.run(synthetic.forgotten, synthetic.tiny(parallel={"ep": 2})):
        assert answer[:3] == [True, True, True]
