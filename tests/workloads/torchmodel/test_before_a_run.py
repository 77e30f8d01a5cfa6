"""What a user wrote wrong is told before a run, with its line; and which item stands at which position."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from shoal import resume
from shoal.record import layout
from shoal_core.ckpt.folder import Folder
from shoal_core.errors import UserError
from shoal_core.loading import load_workload
from shoal_workloads.torchmodel.order import Items
from shoal_workloads.torchmodel.workload import TorchWorkload
from tests.support.torchmodels import Language, Words


class Fine(TorchWorkload):
    """The least that one writes."""

    def build_model(self, config: Any) -> nn.Module:
        return nn.Linear(3, 1)

    def dataset(self, config: Any) -> Any:
        return torch.arange(60.0).reshape(20, 3)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> tuple[Any, ...]:
        return model(batch).pow(2).sum(), len(batch)


def made(kind: type[TorchWorkload], **settings: Any) -> TorchWorkload:
    return kind(kind.Config.model_validate({"global_batch": 4, **settings}))


def told(build: Any = None, **methods: Any) -> UserError:
    """What somebody is told whose model or methods are otherwise."""
    if build is not None:
        methods["build_model"] = lambda self, config: build()
    with pytest.raises(UserError) as refused:
        made(type("Wrong", (Fine,), methods)).preflight(1)
    return refused.value


def test_a_run_is_described() -> None:
    fine = made(Fine)
    assert fine.preflight(1) == {"parameters": 4, "samples": 20, "samples_per_step": 4, "steps_per_epoch": 5.0}
    assert fine.remarks(0, 10) == []
    language = made(Language)
    about = language.preflight(1)
    assert about["parameters"] - about["trained_parameters"] == 24  # the frozen norm
    assert made(Fine).identity()["data"] == {"dataset length": 20, "dataset": None, "seed": 0}


def test_errors_of_their_code_are_told_with_its_line() -> None:
    def loss(self: Any, model: nn.Module, batch: torch.Tensor) -> tuple[Any, ...]:
        return model(batch[:, :2]).sum(), 1  # a wrong shape

    refused = told(loss=loss)
    assert "Wrong.loss raised RuntimeError: mat1 and mat2" in refused.problem
    assert (
        f"{__file__}, line {loss.__code__.co_firstlineno + 1}, in loss: return model(batch[:, :2])" in refused.problem
    )


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (lambda total, n: total, "returned a tensor"),
        (lambda total, n: (total, n, {"right": 1}), "returned a tuple of 3"),
        (lambda total, n: (total.expand(2), n), "its sum is a tensor \\[2\\], not one number"),
        (lambda total, n: (total.reshape(1), n), "its sum is a tensor \\[1\\], not one number"),
        (lambda total, n: (total, torch.ones(n)), "its count is a tensor \\[1\\], not one number"),
        (lambda total, n: (total, str(n)), "its count is str, not one number"),
        (lambda total, n: (total.detach(), n), "hangs on no parameter"),
        (lambda total, n: (total, -n), "its count is -1"),
        (lambda total, n: (total / 0, n), "of the first sample it is -?(inf|nan)"),
    ],
)
def test_a_loss_that_is_no_sum_and_count_is_refused(returned: Any, why: str) -> None:
    def loss(self: Any, model: nn.Module, batch: torch.Tensor) -> Any:
        return returned(model(batch).sum(), len(batch))

    with pytest.raises(UserError, match=why):
        made(type("Wrong", (Fine,), {"loss": loss})).preflight(1)


class Counter(nn.Linear):
    """Counts its calls in a buffer."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


class Drawn(nn.Linear):
    """Draws a buffer, which it does not keep."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.register_buffer("noise", torch.randn(3), persistent=False)


def fresh() -> nn.Module:
    """Draws from a generator that nobody can seed."""
    model, generator = nn.Linear(3, 1), torch.Generator()
    generator.seed()
    nn.init.normal_(model.weight, generator=generator)
    return model


@pytest.mark.parametrize(
    ("build", "why", "remedy"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "1 is a BatchNorm1d", "GroupNorm"),
        (lambda: nn.Linear(3, 1).requires_grad_(False), "no parameter requires a gradient", "trained"),
        (lambda: "model", "returned str", "return the model"),
        (Counter, "buffer calls changes in training", "leave it out"),
        (Drawn, "buffer noise is drawn, and is not kept", "persistent=True"),
        (lambda: nn.LazyLinear(1), "weight has no shape", "sizes"),
        (fresh, "weight is not the same each time", "generators of torch"),
    ],
)
def test_a_model_that_workers_could_not_agree_on_is_refused(build: Any, why: str, remedy: str) -> None:
    refused = told(build)
    assert why in refused.problem
    assert remedy in refused.remedy


def test_blocks_datasets_figures_and_optimizers_are_looked_at() -> None:
    assert "is no module of the model" in told(blocks=lambda self, model: [nn.Linear(1, 1)]).problem
    lists = {"build": lambda: nn.Sequential(nn.Linear(3, 1), nn.ModuleList([nn.Linear(1, 1)]))}
    assert "is never called itself" in told(**lists, blocks=lambda self, model: [model[1]]).problem
    assert "there is nothing in it" in told(dataset=lambda self, config: []).problem
    assert "takes an index" in told(dataset=lambda self, config: iter([1])).remedy
    for taken in {*layout.STEP_FIELDS, *layout.INNER, *layout.GPU_FIGURES, "worker_seconds", "kind"}:
        assert f"{taken} is a figure already" in told(figures=(taken,)).problem
        metrics = {"metrics": lambda self, sums, name=taken: {name: 1.0}}
        assert f"{taken} is a figure of every step" in told(**metrics).problem
    wrong = told(optimizer=lambda self, parameters: torch.optim.Adafactor(parameters))
    assert "Adafactor does not work element by element" in wrong.problem
    assert "a int is no torch.optim.Optimizer" in told(optimizer=lambda self, parameters: 3).problem
    wrong = told(optimizer=lambda self, parameters: torch.optim.LBFGS(parameters))
    assert "LBFGS does not work element by element" in wrong.problem
    assert "figures is a text" in told(figures="right").problem
    counted = {"figures": ("right",), "loss": lambda self, model, batch: (model(batch).sum(), 1, 3)}
    assert "returned the figures int, the class names ['right']" in told(**counted).problem
    assert "metrics returned no mapping" in told(metrics=lambda self, sums: {"a": "b"}).problem
    assert "weights returned PosixPath" in told(weights=lambda self, config: Path("here")).problem
    assert "weights: 'here' is a path from" in told(weights=lambda self, config: "here").problem
    ragged = {"dataset": lambda self, config: [torch.zeros(n) for n in range(1, 9)]}
    with pytest.raises(UserError, match=r"Wrong.dataset or Wrong.collate raised RuntimeError: stack expects"):
        made(type("Wrong", (Fine,), ragged), micro_batch=2).preflight(1)


def test_a_sparse_gradient_is_refused() -> None:
    table = {"dataset": lambda self, config: torch.arange(8).reshape(4, 2)}
    refused = told(lambda: nn.EmbeddingBag(9, 2, sparse=True, mode="sum"), **table)
    assert "the gradient of weight is sparse" in refused.problem


def test_an_error_in_the_fingerprint_is_told_with_its_line() -> None:
    wrong = made(type("Wrong", (Fine,), {"fingerprint": lambda self, dataset: dataset.nothing}))
    with pytest.raises(UserError, match=r"Wrong\.fingerprint raised AttributeError"):
        wrong.identity()


def test_a_method_that_is_not_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(TorchWorkload):
        def build_model(self, config: Any) -> nn.Module:
            return nn.Linear(1, 1)

    monkeypatch.setattr(sys.modules[__name__], "Half", Half, raising=False)
    with pytest.raises(UserError, match="it lacks dataset, loss") as refused:
        load_workload(f"{__name__}:Half")
    assert "docs/your-model.md" in refused.value.remedy


def test_parameters_without_a_gradient_are_named() -> None:
    class Idle(Fine):
        def build_model(self, config: Any) -> nn.Module:
            model = nn.Linear(3, 1)
            model.idle = nn.Linear(2, 2)
            return model

    idle = made(Idle)
    idle.preflight(1)
    assert idle.remarks(0, 5) == ["the sample that was tried gives no gradient to idle.weight, idle.bias"]


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong, why in (
        ({"micro_batch": 3}, "does not divide"),
        ({"schedule": "cosine"}, "needs the step at which it ends"),
        ({"schedule": "linear", "schedule_steps": 5, "warmup_steps": 5}, "are over before"),
        ({"betas": (0.9, 1.0)}, "are not both in"),
        ({"width": 3}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=why):
            made(Fine, **wrong)


def test_the_rate_warms_up_and_ends_where_it_is_told() -> None:
    def rates(**settings: Any) -> list[float]:
        return [made(Fine, **settings).config.rate_at(step) for step in (0, 1, 2, 6, 10, 99)]

    ends = {"schedule_steps": 10, "warmup_steps": 2, "final_lr": 0.1}
    assert rates(warmup_steps=2) == [0.5, 1, 1, 1, 1, 1]
    assert rates(schedule="linear", **ends) == pytest.approx([0.5, 1, 1, 0.55, 0.1, 0.1])
    assert rates(schedule="cosine", **ends) == pytest.approx([0.5, 1, 1, 0.55, 0.1, 0.1])
    assert made(Fine, schedule="cosine", schedule_steps=8).config.rate_at(2) == pytest.approx(0.8535534)  # (1+cos 45)/2


def test_every_item_once_an_epoch_in_another_order_each_time() -> None:
    items = Items(Words(50), 7, 0, lambda found: found)
    epochs = [items.indices(range(first, first + 50)) for first in (0, 50)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(50))] * 2
    assert epochs[0] != epochs[1] != list(range(50))
    assert items.indices(range(48, 53)) == epochs[0][48:] + epochs[1][:3]
    assert Items(Words(50), 8, 0, lambda found: found).indices(range(50)) != epochs[0]


def test_what_is_random_in_a_dataset_hangs_on_the_position() -> None:
    class Noisy(Words):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(2) + index

    def read(positions: Any) -> list[torch.Tensor]:
        found: list[torch.Tensor] = Items(Noisy(50), 7, 0, lambda found: found).batch(positions)
        return found

    torch.manual_seed(5)
    before = torch.get_rng_state()
    whole, parts = read(range(40, 60)), [*read(range(40, 45)), *read(range(45, 60))]
    assert torch.equal(torch.stack(whole), torch.stack(parts))
    assert len({tuple(value.frac().tolist()) for value in whole}) == 20
    assert torch.equal(torch.get_rng_state(), before)  # outside it goes on where it was


def test_a_dataset_that_brings_its_order_is_asked_for_positions() -> None:
    class Ordered(Words):
        ordered = True

        def __getitems__(self, positions: list[int]) -> list[int]:
            return positions

    assert Items(Ordered(5), 7, 0, list).batch(range(8, 12)) == [8, 9, 10, 11]


def test_a_dataset_of_another_length_is_refused_on_resume() -> None:
    before, now = (made(Language, length=length).identity() for length in (50, 60))
    origin = {"origin": {"data": before["data"]}}
    found = resume.Found(Folder.at("runs/step-00000005"), {"workload": origin, "steps": 5}, before["state"], 20)
    assert resume.check(found, before, ()) == []
    with pytest.raises(UserError, match="dataset length was 50, is 60"):
        resume.check(found, now, ())
