"""Optimizers of torch's on shards: begun as fresh ones, with a state that is there from the start."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from shoal_core.errors import UserError
from shoal_workloads.torchmodel.optimizer import Theirs, check_by_element, kept

SHAPES = {"matrix": (4, 3), "vector": (5,), "empty": (0, 3)}
optim = torch.optim
Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

BY_ELEMENT: dict[str, Make] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "dampened": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, lr=0.1, amsgrad=True),
    "two groups": lambda p: two_groups(p),
    "NAdam": lambda p: optim.NAdam(p, lr=0.1),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "Rprop": lambda p: optim.Rprop(p, lr=0.1),
    "Adadelta": lambda p: optim.Adadelta(p, lr=0.1),
}


def two_groups(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3}]
    return optim.Adam(groups, lr=0.1)


class Counting(optim.Optimizer):
    """Counts in Python, as optimizers outside of torch do, and moves by what it has counted."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["times"] = state.get("times", 0) + 1
                p.sub_(p.grad, alpha=group["lr"] / state["times"])


class Lamb(Counting):
    """Moves by the norm of the whole parameter."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.sub_(p.grad * p.norm() / (p.grad.norm() + 1e-6), alpha=0.1)


class InGroups(Counting):
    """Keeps what it learns in its group."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.param_groups[0]["d"] = self.param_groups[0].get("d", 1.0) * 1.5
        super().step()

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(parameters, lr)
        self.param_groups[0]["d"] = 1.0


def draw(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES.values()]


@pytest.mark.parametrize("make", [*BY_ELEMENT.values(), lambda p: Counting(p, lr=0.1)], ids=[*BY_ELEMENT, "counting"])
def test_it_steps_as_alone_and_goes_on_from_its_state(make: Make) -> None:
    """The rate of step i is 1/(i+1) of its peak; after two of four steps another goes on from a copy of all tensors."""
    mine, plain = draw(0), draw(0)
    one, by_hand = Theirs(mine, make), make(plain)
    assert all(torch.equal(p, q) for p, q in zip(mine, plain, strict=True))  # to see what it keeps changed nothing
    check_by_element(make, [len(shape) for shape in SHAPES.values()])
    peaks = [group["lr"] for group in by_hand.param_groups]
    for step in range(4):
        if step == 2:
            other = Theirs(copies := draw(9), make)
            for target, source in zip(tensors(other, copies), tensors(one, mine), strict=True):
                target.copy_(source)
            one, mine = other, copies
        one.step(draw(step + 1), 1 / (step + 1), step + 1)
        for group, peak in zip(by_hand.param_groups, peaks, strict=True):
            group["lr"] = peak / (step + 1)
        for p, grad in zip(plain, draw(step + 1), strict=True):
            p.grad = grad
        by_hand.step()
        assert all(torch.equal(p, q) for p, q in zip(mine, plain, strict=True)), step


def tensors(one: Theirs, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    kinds = [tensor for row in one.kinds().values() for tensor in row if tensor is not None]
    return [*parameters, *kinds, *one.others().values()]


def test_what_it_keeps_is_known_beforehand() -> None:
    found = kept(BY_ELEMENT["AdamW"], SHAPES)
    assert found["optim.exp_avg.matrix"] == ((4, 3), "float32")
    assert found["optim.max_exp_avg_sq.empty"] == ((0, 3), "float32")
    assert found["optim.step.vector"] == ((), "float32")
    assert found["optim_steps"] == ((1,), "int64")
    assert kept(lambda p: Counting(p, lr=0.1), {"a": (2,)})["optim.times.a"] == ((), "float64")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: optim.Muon([q for q in p if q.dim() == 2], lr=0.1), "it changes halves"),
        (lambda p: optim.Adafactor(p, lr=0.1), "row_var|it changes halves"),
        (lambda p: Lamb(p, lr=0.1), "it changes halves"),
        (lambda p: InGroups(p, lr=0.1), "keeps d in its groups"),
        (lambda p: optim.SGD(p[:1], lr=0.1), "of 2 parameters it takes 1"),
    ],
)
def test_one_that_needs_more_than_rows_or_keeps_state_elsewhere_is_refused(make: Make, why: str) -> None:
    two = [2, 2] if "halves" in why else [2, 1]
    with pytest.raises(UserError, match=why):
        check_by_element(make, two)
