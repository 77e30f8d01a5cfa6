"""The stages of a model that one rank holds, as the executor drives them.

Shapes: B samples of a micro-batch, T positions, D width, L_r routers of the whole model, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from shoal_workloads.model.deepseek import DeepSeekV3, Losses
from shoal_workloads.parallel.engine import Factors, Figures
from shoal_workloads.precision.weight_grads import Waiting

__all__ = ["ModelStages"]


@dataclass
class _Kept:
    """Between the forward and the backward pass of a micro-batch. `out`: where the gradient of what went to the next
    stage enters, not that itself, which backward has no use for."""

    x: torch.Tensor | None
    out: GradientEdge
    losses: Losses


class ModelStages:
    """See `executor.Stages`. `layers`: those of each stage of the model. `read`: tokens (B, T+1) of a micro-batch.
    `like`: tokens of no meaning, for stages that need none. `factors`: none where only losses are asked for."""

    def __init__(
        self,
        model: DeepSeekV3,
        layers: Sequence[range],
        read: Callable[[int], torch.Tensor],
        like: torch.Tensor,
        factors: Factors | None,
    ) -> None:
        self._model, self._layers, self._read, self._like, self._factors = model, layers, read, like, factors
        config = model.config
        self.figures = Figures(torch.zeros(config.n_routers, config.n_experts, dtype=torch.int64, device=like.device))
        self.nats: dict[int, torch.Tensor] = {}
        """Of each sample, by micro-batch, at the last stage, where only losses are asked for: (B,)."""
        self._kept: dict[tuple[int, int], _Kept] = {}
        self._waiting: dict[tuple[int, int], Waiting] = {}

    def forward(self, stage: int, micro_batch: int, x: torch.Tensor | None) -> torch.Tensor | None:
        layers, last, train = self._layers[stage], stage == len(self._layers) - 1, self._factors is not None
        tokens = self._read(micro_batch) if last or x is None else self._like
        if x is not None and train:
            x.requires_grad_()
        out, losses = self._model.stage(layers, tokens, x, last=last, mtp=train)
        if train:
            self._kept[stage, micro_batch] = _Kept(x, get_gradient_edge(out), losses)
            self._count(layers, losses, last=last)
        elif last:
            self.nats[micro_batch] = losses.lm_each
        return None if last else out.detach()

    def _count(self, layers: range, losses: Losses, *, last: bool) -> None:
        figures, routers = self.figures, self._model.routers_of(layers, last=last)
        figures.loads[routers.start : routers.stop] += losses.loads
        figures.count(losses)  # the main ones are zero but in the last stage
        if last:
            figures.samples += len(losses.lm_each)

    def backward(self, stage: int, micro_batch: int, grad: torch.Tensor | None, *, wait: bool) -> torch.Tensor | None:
        kept, factors = self._kept.pop((stage, micro_batch)), self._factors
        assert factors is not None
        losses = kept.losses
        roots, grads = list[GradientEdge](), list[torch.Tensor]()
        if grad is None:
            loss = factors.loss(losses)
            roots.append(get_gradient_edge(loss))
            grads.append(torch.ones_like(loss))
        else:
            roots.append(kept.out)
            grads.append(grad)
            if losses.balance.requires_grad:
                roots.append(get_gradient_edge(losses.balance))
                grads.append(torch.full_like(losses.balance, factors.balance))
        if wait:
            with Waiting() as waiting:
                torch.autograd.backward(roots, grads)
            self._waiting[stage, micro_batch] = waiting
        else:
            torch.autograd.backward(roots, grads)
        return None if kept.x is None else kept.x.grad

    def weights(self, stage: int, micro_batch: int) -> None:
        self._waiting.pop((stage, micro_batch)).finish()
