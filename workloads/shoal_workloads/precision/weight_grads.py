"""Gradients of weights that wait: zero-bubble schedules make them later than the gradient of a layer's input, to fill
gaps (arXiv 2401.10241).

A layer's backward asks here for the gradients of its weights. Usually they are made at once; inside `Waiting` the
products are put off and autograd is told that there are none yet.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

__all__ = ["Waiting", "are_waiting", "weight_grads"]

Tensors = tuple[torch.Tensor, ...]


class Waiting:
    """A context of one backward pass; `finish` makes what it put off and adds it to the parameters' gradients. What
    the products need is held until then."""

    _open: Waiting | None = None

    def __init__(self) -> None:
        self._queue: list[tuple[list[GradientEdge], Callable[[], Tensors]]] = []

    def __enter__(self) -> Waiting:
        Waiting._open = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Waiting._open = None

    def finish(self) -> None:
        """Make the gradients, in the order they were put off."""
        queue, self._queue = self._queue[::-1], []
        while queue:
            edges, make = queue.pop()
            torch.autograd.backward(edges, make())

    def put(self, weights: Tensors, make: Callable[[], Tensors]) -> None:
        """Put off the gradients of `weights`. Where they lead to is looked up now: a weight that was kept through hooks
        (see `recompute`) is a stand-in, which forgets its parameter once the graph is gone."""
        self._queue.append(([get_gradient_edge(weight) for weight in weights], make))


def are_waiting() -> bool:
    """Whether gradients of weights are being put off."""
    return Waiting._open is not None


def weight_grads(weights: Tensors, make: Callable[[], Tensors]) -> tuple[torch.Tensor | None, ...]:
    """make(), the gradients of `weights` as a Function's backward returns them; none if they are put off."""
    waiting = Waiting._open
    if waiting is None:
        return make()
    waiting.put(weights, make)
    return (None,) * len(weights)
