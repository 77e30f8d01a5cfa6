"""What updates the local shards: Shoal's AdamW, or a `torch.optim.Optimizer` of the user's.

An optimizer of torch's makes its state in its first step, and how it begins may differ from going on with zeros (SGD's
momentum is its first gradient). Here the tensors of that state are there from the start, to be healed and saved, and
yet its first step is the first of a fresh optimizer: what that makes is copied into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from shoal_core.errors import UserError
from shoal_workloads.recipe.adamw import AdamW, AdamWConfig
from shoal_workloads.torchmodel.building import dtype_name
from shoal_workloads.torchmodel.config import TorchConfig

__all__ = ["Make", "Ours", "Theirs", "Updates", "check_by_element", "kept"]

Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


class Updates(Protocol):
    """Updates parameters in place."""

    def step(self, grads: Sequence[torch.Tensor], rate: float, count: int) -> None:
        """grads: averaged and clipped; rate: share of the peak learning rate; count: 1 for the first step."""

    def kinds(self) -> dict[str, list[torch.Tensor | None]]:
        """What is kept of every parameter, by kind: a tensor of its shape, one number, or nothing."""

    def others(self) -> dict[str, torch.Tensor]:
        """What is kept beside."""

    @property
    def lr(self) -> float:
        """The peak learning rate."""


class Ours:
    """See `Updates`."""

    def __init__(self, parameters: Sequence[torch.Tensor], config: TorchConfig) -> None:
        beta1, beta2 = config.betas
        recipe = AdamWConfig(beta1=beta1, beta2=beta2, eps=config.eps, weight_decay=config.weight_decay)
        self._adamw, self.lr = AdamW(parameters, recipe), config.lr

    def step(self, grads: Sequence[torch.Tensor], rate: float, count: int) -> None:
        self._adamw.step(grads, rate * self.lr, count)

    def kinds(self) -> dict[str, list[torch.Tensor | None]]:
        return {"adam_m": list(self._adamw.m), "adam_v": list(self._adamw.v)}

    def others(self) -> dict[str, torch.Tensor]:
        return {}


class Theirs:
    """See `Updates`. The learning rates of its groups are the peak; the schedule scales them.

    Raises:
        UserError: it does not take every parameter once, or keeps something that is neither a number nor of the
            parameter's shape.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], make: Make) -> None:
        self._parameters = list(parameters)
        self._optimizer = optimizer = make(list(self._parameters))
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(
                f"optimizer: {_words(optimizer)} is no torch.optim.Optimizer", "return one, over `parameters`"
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UserError(*_not_by_element("LBFGS", "it calls for the loss again and looks at all parameters"))
        taken = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if sorted(taken) != sorted(map(id, self._parameters)):
            raise UserError(
                f"optimizer: of {len(self._parameters)} parameters it takes {len(taken)}, or others",
                "give it every parameter once, in one group or several",
            )
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.lr = self._rates[0]
        self._begun = torch.zeros(1, dtype=torch.int64)
        self._held = self._rehearse()

    def step(self, grads: Sequence[torch.Tensor], rate: float, count: int) -> None:
        optimizer = self._optimizer
        optimizer.state.clear()
        if int(self._begun):
            for p, held in zip(self._parameters, self._held, strict=True):
                known = ((key, tensor if kind is None else kind(tensor.item())) for key, (tensor, kind) in held.items())
                optimizer.state[p] = dict(known)
        for group, peak in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = peak * rate
        self._update(grads)
        for p, held in zip(self._parameters, self._held, strict=True):
            for key, value in optimizer.state.get(p, {}).items():
                if value is None:
                    continue
                if key not in held:
                    raise RuntimeError(f"optimizer: {type(optimizer).__name__} keeps {key} only from step {count} on")
                tensor, _ = held[key]
                if not isinstance(value, torch.Tensor):
                    tensor.fill_(value)
                elif value is not tensor:
                    tensor.copy_(value)
        self._begun += 1

    def kinds(self) -> dict[str, list[torch.Tensor | None]]:
        keys = dict.fromkeys(key for held in self._held for key in held)
        return {f"optim.{key}": [held[key][0] if key in held else None for held in self._held] for key in keys}

    def others(self) -> dict[str, torch.Tensor]:
        return {"optim_steps": self._begun}

    def _update(self, grads: Sequence[torch.Tensor]) -> None:
        for p, grad in zip(self._parameters, grads, strict=True):
            p.grad = grad
        try:
            self._optimizer.step()
        finally:
            for p in self._parameters:
                p.grad = None

    def _rehearse(self) -> list[dict[str, tuple[torch.Tensor, type | None]]]:
        """Take a step that is undone, to see what it keeps: of every parameter tensors, zero, to hold it in, and of
        which type it is if it is no tensor there."""
        optimizer, name = self._optimizer, type(self._optimizer).__name__
        before = [p.clone() for p in self._parameters]
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        self._update([torch.zeros_like(p) for p in self._parameters])
        for p, value in zip(self._parameters, before, strict=True):
            p.copy_(value)
        for group, was in zip(optimizer.param_groups, groups, strict=True):
            if changed := [key for key, value in was.items() if group[key] is not value and group[key] != value]:
                raise UserError(
                    f"optimizer: {name} keeps {', '.join(changed)} in its groups, where no peer or checkpoint gets it",
                    "use one that keeps its state by parameter",
                )
        found = []
        for p in self._parameters:
            held: dict[str, tuple[torch.Tensor, type | None]] = {}
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, torch.Tensor) and value.shape in (p.shape, torch.Size()):
                    held[key] = torch.zeros_like(value), None
                elif isinstance(value, (int, float)):
                    held[key] = torch.zeros((), dtype=torch.float64), type(value)
                elif value is not None:
                    raise UserError(*_not_by_element(name, f"it keeps {key}, {_words(value)}, of {_words(p)}"))
            found.append(held)
        optimizer.state.clear()
        return found


def kept(make: Make, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of all that an optimizer keeps of parameters of these shapes, found on small ones."""
    small = [torch.zeros([2] * len(shape)) for shape in shapes.values()]
    one = Theirs(small, make)
    found = {name: (tuple(tensor.shape), dtype_name(tensor)) for name, tensor in one.others().items()}
    for kind, tensors in one.kinds().items():
        for (name, shape), p, tensor in zip(shapes.items(), small, tensors, strict=True):
            if tensor is not None:
                found[f"{kind}.{name}"] = (shape if tensor.shape == p.shape else (), dtype_name(tensor))
    return found


def check_by_element(make: Make, dims: Sequence[int]) -> None:
    """Whether an optimizer comes to the same on halves of parameters as on the whole, as it must on shards. dims: how
    many dimensions each parameter has.

    Raises:
        UserError: it does not: it works on whole matrices, or rows, or norms.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, *[3] * (dim - 1)) for dim in dims if dim]
    values = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(4)]

    def after(cut: Callable[[torch.Tensor], torch.Tensor]) -> tuple[list[torch.Tensor], str]:
        parameters, *grads = [[cut(value).clone() for value in row] for row in values]
        one = Theirs(parameters, make)
        for count, row in enumerate(grads, 1):
            one.step(row, 1.0, count)
        return parameters, type(one._optimizer).__name__

    whole, name = after(lambda value: value)
    halves = after(lambda value: value[:2])[0], after(lambda value: value[2:])[0]
    for one, *parts in zip(whole, *halves, strict=True):
        if not torch.allclose(one, torch.cat(parts), rtol=1e-4, atol=1e-6):
            raise UserError(*_not_by_element(name, f"it changes halves of {_words(one)} otherwise than the whole"))


def _not_by_element(name: str, why: str) -> tuple[str, str]:
    return (
        f"optimizer: {name} does not work element by element ({why}), and a worker has only some rows of a parameter",
        "use one that does (AdamW, SGD, RMSprop, Adagrad, ...), or Shoal's own",
    )


def _words(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
