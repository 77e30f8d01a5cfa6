"""What a user's model takes, before anything is rented: against what it takes here."""

from __future__ import annotations

import json
from collections.abc import Sized
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from docs.examples.digits import Digits
from docs.examples.gpt import GPT
from shoal.cli.main import app
from shoal_core.errors import UserError
from shoal_workloads.estimate import Cluster, hardware
from shoal_workloads.estimate.torchmodel import counted, torch_estimate
from shoal_workloads.torchmodel.workload import TorchWorkload

H100 = Cluster(1, 8, "H100", hardware("H100"))


def two_layers(width: int = 24) -> TorchWorkload:
    class Two(TorchWorkload):
        def build_model(self, config: Any) -> nn.Module:
            return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))

        def dataset(self, config: Any) -> Sized:  # type: ignore[override]
            return [(torch.randn(8), torch.randn(1)) for _ in range(64)]

        def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
            x, y = batch
            return ((model(x) - y) ** 2).sum(), len(x)

    return Two(Two.Config(global_batch=64, micro_batch=4))


@pytest.mark.parametrize("values", [True, False])
def test_flops_and_kept_bytes_are_the_closed_form(values: bool) -> None:
    found = counted(two_layers(), values=values)
    assert found.parameters == found.trained == found.rest == 8 * 24 + 24 + 24 + 1
    # forward, gradients of weights and of the second layer's input
    assert found.flops == 4 * (2 * 8 * 24 * 2 + 2 * 24 * 3)
    x, hidden, difference = 4 * 8, 4 * 24, 4 * 1
    assert found.kept == 4 * (x + hidden + difference)  # ReLU's output is the second layer's input


@pytest.mark.parametrize("kind", [Digits, GPT])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shapes_alone_count_what_values_do(kind: type[TorchWorkload], precision: str) -> None:
    workload = kind(kind.Config(global_batch=32, micro_batch=2, precision=precision))
    assert counted(workload, values=False) == counted(workload, values=True)


def test_what_is_held_is_what_a_shard_holds() -> None:
    """Alone in a cell: parameters, moments and gradients to the byte."""
    workload = two_layers()
    shard = workload.build(0)
    memory = torch_estimate(workload, H100, 1, 8).memory
    held = sum(p.numel() * p.element_size() for p in shard.model.parameters())
    state = sum(t.numel() * t.element_size() for t in shard.tensors()) - 3 * 8  # less the guard's
    shard.accumulate([[0, 1, 2, 3]])
    assert memory["parameters"] == held
    assert memory["parameters"] + memory["optimizer"] == state
    sums = shard.sums()
    assert memory["gradients"] == memory["gradients, flat"] == sums.numel() * sums.element_size()
    assert memory["parameters, gathered"] == 0


def test_gradients_that_are_reduced_once_need_room_for_the_whole_and_are_sent_once() -> None:
    shape = {"global_batch": 64, "micro_batch": 1}
    each, once = (
        torch_estimate(GPT(GPT.Config(**shape, reduce_once=said)), H100, workers=4, cells=1) for said in (False, True)
    )
    model = GPT(GPT.Config(**shape)).build_model(GPT.Config(**shape))
    in_blocks = sum(p.numel() for p in model.blocks.parameters())  # of the rest they are whole while backward goes
    assert once.memory["gradients, not reduced yet"] - each.memory["gradients, not reduced yet"] == 4 * in_blocks
    assert once.step["gather and reduce"] < each.step["gather and reduce"]


@pytest.mark.parametrize("own", [False, True])
def test_of_every_parameter_the_first_of_many_holds_the_largest_part(own: bool) -> None:
    """The first layer, which is frozen, and the bias of the other have no rows for all."""

    class Frozen(type(two_layers())):  # type: ignore[misc]
        def build_model(self, config: Any) -> nn.Module:
            model = super().build_model(config)
            model[0].requires_grad_(False)
            return model

    class Momentum(Frozen):
        def optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    workload = (Momentum if own else Frozen)(Frozen.Config(global_batch=64, micro_batch=4))
    memory = torch_estimate(workload, H100, 8, 1).memory
    model = workload.build_model(workload.config)
    mine = [p.chunk(8)[0].numel() for p in model.parameters()]
    assert mine == [24, 3, 24, 1]
    assert memory["parameters"] == 4 * sum(mine)
    assert memory["gradients"] == memory["gradients, flat"] == 4 * (24 + 1)
    assert memory["optimizer"] == (4 * (24 + 1) + 8 if own else 2 * 4 * (24 + 1))


def test_what_the_loss_raises_is_told_with_its_line() -> None:
    class Breaks(type(two_layers())):  # type: ignore[misc]
        def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
            return model(batch[0][:, :3]).sum(), 1

    for values in (False, True):
        with pytest.raises(UserError, match=r"Breaks\.loss raised RuntimeError") as error:
            counted(Breaks(Breaks.Config(global_batch=8)), values=values)
        assert "model(batch[0][:, :3])" in error.value.problem


def test_what_looks_at_values_is_refused_without_them() -> None:
    class Looks(type(two_layers())):  # type: ignore[misc]
        def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
            total, count = super().loss(model, batch)
            return total, count if total.item() > 0 else 1

    with pytest.raises(UserError, match="Looks looks at values"):
        counted(Looks(Looks.Config(global_batch=8)), values=False)


def test_a_job_of_ones_own_model_is_priced(tmp_path: Path) -> None:
    job = {
        "run_id": "mine", "steps": 1000, "cells": 4, "workers_per_cell": 2, "storage": str(tmp_path),
        "workload": {"path": "docs.examples.gpt:GPT", "global_batch": 64, "micro_batch": 2},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    asked = ["plan", str(tmp_path / "job.yaml"), "--cluster", "1x8xH100", "--price", "2"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)
    assert found["memory_peak_bytes"] == sum(found["memory_parts"].values())
    assert found["step_seconds"] == pytest.approx(sum(found["step_parts"].values()))
    assert found["dollars"] == pytest.approx(1000 * found["step_seconds"] / 3600 * 8 * 2)
    assert "1,000 steps" in CliRunner().invoke(app, asked).stdout
    small = CliRunner().invoke(app, [*asked[:3], "1x4xH100"])
    assert "4 cells of 2 workers: 4 GPUs, and a batch that has 16 shares for such cells, are enough for 2" in str(
        small.exception
    )
    idle = CliRunner().invoke(app, [*asked[:3], "2x8xH100", "--price", "2", "--json"])
    assert json.loads(idle.stdout)["dollars"] == pytest.approx(2 * found["dollars"])
    assert "8 of 16 GPUs train" in " ".join(json.loads(idle.stdout)["reasons"])


def test_a_job_of_ones_own_model_is_asked_all_that_a_preset_is(tmp_path: Path) -> None:
    """Money, days, failures, cells of other sizes, and the picture; by the same keys."""
    job = {
        "run_id": "mine", "steps": 1000, "cells": 4, "workers_per_cell": 2, "storage": str(tmp_path),
        "workload": {"path": "docs.examples.gpt:GPT", "global_batch": 64, "micro_batch": 2},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    asked = ["plan", str(tmp_path / "job.yaml"), "--cluster", "1x8xH100", "--price", "2", "--json"]

    def said(*more: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, [*asked, *more])
        assert done.exit_code == 0, (done.output, done.exception)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    plain, money = said(), said("--budget", "10")
    model = ["--model", "laptop-1m", "--cluster", "1x8xH100", "--global-batch", "64", "--precision", "bf16", "--json"]
    assert plain.keys() == json.loads(CliRunner().invoke(app, ["plan", *model]).stdout).keys()
    assert money["dollars"] == pytest.approx(10)
    seq_len = 128  # of the example: its loss counts tokens
    assert plain["tokens"] == 1000 * 64 * seq_len
    assert money["tokens"] == pytest.approx(10 / plain["dollars"] * plain["tokens"])
    assert said("--days", "2")["days"] == pytest.approx(2)
    assert said("--tokens", "1B")["tokens"] == 1e9
    failing = said("--days", "2", "--failures", "--seeds", "1", "--picture", str(tmp_path / "plan.svg"))
    assert len(failing["dollars_with_failures"]) == 4
    sizes = {one["layout"]["workers_per_cell"] for one in failing["cells"]}
    assert 2 in sizes
    assert len(sizes) > 1
    drawn = (tmp_path / "plan.svg").read_text()
    assert "when it needs most" in drawn
    assert "other shapes" in drawn


def test_what_cannot_fit_says_by_how_much_and_where_it_would(tmp_path: Path) -> None:
    (tmp_path / "gpus.yaml").write_text(json.dumps({"Small": {**H100.hardware.model_dump(), "memory_gb": 3.7}}))
    job = {
        "run_id": "mine", "steps": 10, "cells": 1, "workers_per_cell": 1, "storage": str(tmp_path),
        "workload": {"path": "docs.examples.gpt:GPT", "global_batch": 64, "micro_batch": 2, "width": 2048},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    asked = ["plan", str(tmp_path / "job.yaml"), "--hardware", str(tmp_path / "gpus.yaml"), "--json"]
    done = CliRunner().invoke(app, [*asked, "--cluster", "1x1xSmall"])
    found = json.loads(done.stdout)
    assert done.exit_code == 2
    assert f"needs {found['memory_peak_bytes'] / 1e9 - 3.7:.1f} GB more" in found["reasons"][0]


@pytest.mark.parametrize("values", [True, False])
def test_what_a_loss_counts_is_known_where_it_hangs_on_no_value(values: bool) -> None:
    class Masked(type(two_layers())):  # type: ignore[misc]
        def loss(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            total, _ = super().loss(model, batch)
            return total, (batch[1] > 0).sum()

    assert counted(two_layers(), values=values).count == 4
    masked = counted(Masked(Masked.Config(global_batch=64, micro_batch=4)), values=values).count
    assert (masked is None) == (not values)
