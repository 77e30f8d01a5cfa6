"""A model in cells of any shape against the loop that one would write in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from shoal.testing import World, alone
from shoal_core.errors import UserError
from shoal_core.grid import Grid
from shoal_core.loading import make_workload
from shoal_workloads.torchmodel.building import built
from shoal_workloads.torchmodel.shard import TorchShard
from tests.support.torchmodels import Language, WithSgd

STEPS = 4
BATCH = 12


def section(kind: str = "Language", **settings: Any) -> dict[str, Any]:
    return {"path": f"tests.support.torchmodels:{kind}", "global_batch": BATCH, "lr": 3e-3, **settings}


def train(shard: TorchShard, workers: int) -> list[float]:
    """Take the steps of a run in one cell, as the platform does. Returns the losses."""
    losses, each = [], shard.config.micro_batch * workers
    for step in range(STEPS):
        shard.begin(step)
        first, last = shard.workload.samples(step)
        shard.accumulate([range(i, i + each) for i in range(first, last, each)])
        total = shard.sums()
        stats, norm = torch.tensor(shard.stats(), dtype=torch.float64), torch.tensor([shard.norm_sq(total)])
        if workers > 1:
            dist.all_reduce(stats)
            dist.all_reduce(norm)
        losses.append(shard.commit(total, stats.tolist(), float(norm))["loss"])
    return losses


def in_a_cell(settings: dict[str, Any]) -> tuple[list[float], dict[str, torch.Tensor], dict[str, list[int]]]:
    """Losses, the whole state, and the rows that this worker had of each of it."""
    shard = make_workload(settings).build(3)
    assert isinstance(shard, TorchShard)
    losses, state = train(shard, dist.get_world_size()), shard.state_dict()
    rows = {name: list(value.to_local().shape) for name, value in state.items() if isinstance(value, DTensor)}
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}
    return losses, {name: value.clone() for name, value in whole.items()}, rows


def by_hand(workload: Language) -> tuple[list[float], nn.Module]:
    """The plain loop: the mean over what counts, one optimizer over all parameters, no Shoal but for the order."""
    config = workload.config
    torch.manual_seed(3)
    model = workload.build_model(config)
    trained: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
    if isinstance(workload, WithSgd):
        optimizer = workload.optimizer(trained)
    else:
        wide, narrow = ([p for p in trained if (p.dim() > 1) is decays] for decays in (True, False))
        groups = [{"params": wide, "weight_decay": 0.01}, {"params": narrow, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.lr)
    losses = []
    for step in range(STEPS):
        batch = workload.collate([workload.data[i] for i in workload.items.indices(range(*workload.samples(step)))])
        total, count, *_ = workload.loss(model, batch)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    return losses, model


@pytest.mark.parametrize("kind", ["Language", "WithSgd"])
def test_one_process_is_the_plain_loop(kind: str) -> None:
    settings = section(kind, dropout=0.0, micro_batch=3)
    workload = make_workload(settings)
    assert isinstance(workload, Language)
    losses, model = by_hand(workload)
    found = alone(settings, STEPS, seed=3)
    assert found.losses == pytest.approx(losses, rel=1e-5)
    for name, value in model.named_parameters():
        torch.testing.assert_close(found.state[f"model.{name}"], value.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.state["buffer.shift"], model.shift)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["Language", pytest.param("WithSgd", marks=pytest.mark.long)])
def test_shards_come_to_what_one_process_does_dropout_included(kind: str, pair: World, four: World) -> None:
    """Matrices have 7 rows, or 23: the last of four workers has one, or five; of what has no rows each has all."""
    settings = section(kind, ema_decay=0.9)
    expected = alone(settings, STEPS, seed=3)
    for world, once in ((pair, False), (pair, True), (four, False)):
        for rank, (losses, state, rows) in enumerate(world.run(in_a_cell, settings | {"reduce_once": once})):
            assert losses == pytest.approx(expected.losses, rel=1e-5)
            assert state.keys() == expected.state.keys()
            for name, value in state.items():
                torch.testing.assert_close(value, expected.state[name], rtol=1e-4, atol=1e-5)
            shares = {2: ([4, 3], [12, 11]), 4: ([2, 2, 2, 1], [6, 6, 6, 5])}[world.size]
            assert rows["model.layers.1.up.weight"] == [shares[0][rank], 12]
            assert rows["ema.embedding.weight"] == [shares[1][rank], 12]
            assert "model.temperature" not in rows


def initial(settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The state of a shard that was just built, whole."""
    state = make_workload(settings).build(3).state_dict()
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def test_initial_values_are_read_from_a_folder_whatever_the_shape(tmp_path: Path, pair: World) -> None:
    model = built(Language(Language.Config(global_batch=BATCH)), seed=77)
    weights = {name: value for name, value in model.state_dict().items() if name != "embedding.weight"}  # the head's is
    save_file(weights, tmp_path / "model.safetensors")
    settings = section("FromWeights", folder=str(tmp_path), ema_decay=0.9)
    make_workload(settings).preflight(2)
    for state in (initial(settings), *pair.run(initial, settings)):
        for name, value in model.named_parameters():
            assert torch.equal(state[f"model.{name}"], value)
            assert torch.equal(state.get(f"ema.{name}", value), value)
        assert torch.equal(state["buffer.shift"], model.shift)  # type: ignore[arg-type]
    del weights["head.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"head\.bias"):
        make_workload(settings).preflight(2)


class Nothing(Language):
    """Where nothing counts in the second step."""

    step = 0

    def loss(self, model: nn.Module, batch: torch.Tensor) -> tuple[Any, ...]:
        total, count, sums = super().loss(model, batch)
        counts = self.step != 1
        return total * counts, count * counts, {"right": sums["right"] * counts}


def test_a_step_of_which_nothing_counts_changes_nothing() -> None:
    workload = Nothing(Nothing.Config.model_validate({"global_batch": BATCH}))
    shard = workload.build(3)
    for step in range(3):
        workload.step = step
        before = [tensor.clone() for tensor in shard.tensors()]
        shard.begin(step)
        shard.accumulate([range(BATCH * step, BATCH * (step + 1))])
        total = shard.sums()
        figures = shard.commit(total, shard.stats(), shard.norm_sq(total))
        changed = any(not torch.equal(one, other) for one, other in zip(before, shard.tensors(), strict=True))
        assert changed is (step != 1)
        assert shard.notes() == ([{"kind": "nothing_counted", "step": 1}] if step == 1 else [])
        told = [value for name, value in figures.items() if name != "lr"]
        assert any(told) is changed


def rounded(settings: dict[str, Any]) -> list[torch.Tensor]:
    """The whole gradients of one micro-batch of four samples, in units of a grid."""
    shard = make_workload(settings).build(3)
    assert isinstance(shard, TorchShard)
    grid = Grid(BATCH)
    assert shard.round_to(grid) == sum(p.numel() for p in shard._parameters)
    workers = dist.get_world_size() if dist.is_initialized() else 1
    found: list[torch.Tensor] = []
    for first in range(0, 4, workers):
        shard.begin(0)
        shard.accumulate([range(first, first + workers)])
        found.append(shard.sums())
    parts = shard._split(sum(found[1:], found[0]))
    wholes = [one.whole(part) for one, part in zip(shard._trained, parts, strict=True)]
    return [value.full_tensor() if isinstance(value, DTensor) else value for value in wholes]


def test_rounded_gradients_hang_on_no_shape_to_the_bit(pair: World, four: World) -> None:
    settings = section(point=False)
    expected = rounded(settings)
    assert max(int(part.abs().max()) for part in expected) > 2**40
    for world in (pair, four):
        for found in world.run(rounded, settings):
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def filled(settings: dict[str, Any]) -> tuple[bool, int]:
    """Whether a shard that is filled from another is it, and how many tensors they have."""
    workload = make_workload(settings)
    source, target = workload.build(3), workload.build_to_fill(3)
    train(source, dist.get_world_size())  # type: ignore[arg-type]
    for here, there in zip(target.tensors(), source.tensors(), strict=True):
        here.copy_(there)
    target.loaded(STEPS)
    same = [train(shard, dist.get_world_size()) for shard in (source, target)]  # type: ignore[arg-type]
    return same[0] == same[1], len(source.tensors())


@pytest.mark.parametrize("kind", ["Language", pytest.param("WithSgd", marks=pytest.mark.long)])
def test_a_shard_that_is_filled_goes_on_as_the_one_it_is_filled_from(kind: str, pair: World) -> None:
    for same, tensors in pair.run(filled, section(kind, ema_decay=0.9)):
        assert same
        assert tensors > 20
