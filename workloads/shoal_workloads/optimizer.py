"""What a committed step changes: parameters and moments by AdamW, router biases by load, averages of the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shoal_workloads.config import PretrainConfig
from shoal_workloads.progress import Progress
from shoal_workloads.recipe.adamw import AdamW
from shoal_workloads.recipe.balance import update_bias
from shoal_workloads.recipe.ema import Ema

__all__ = ["Optimizer"]


class Optimizer:
    """`parameters`: local shards, float32; `biases`: of every router, (E,). Both are updated in place."""

    def __init__(
        self, config: PretrainConfig, parameters: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]
    ) -> None:
        self._parameters, self._biases, self._clip = list(parameters), biases, config.optim.clip
        self._adamw = AdamW(self._parameters, config.optim)
        self._averages = Ema(self._parameters, config.ema_decay) if config.ema_decay else None

    def step(self, grads: torch.Tensor, loads: torch.Tensor, norm: float, progress: Progress) -> None:
        """Clip, update parameters and router biases, and begin to average. Not collective.

        Args:
            grads: flat, parameter after parameter, summed over the step's samples; scaled in place.
            loads: (L_r, E), of the step.
            norm: of the averaged gradient, over the whole model.
        """
        if self._averages is not None:
            self._averages.wait()
        scale = min(1.0, self._clip / (norm + 1e-6)) / progress.batch
        self._adamw.step(self.split(grads.mul_(scale)), progress.lr, progress.step + 1)
        for bias, load in zip(self._biases, loads, strict=True):
            update_bias(bias, load, progress.gamma)
        if self._averages is not None:
            self._averages.update()

    def split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a flat tensor in the shapes of the parameters, one after the other."""
        parts = flat.split([p.numel() for p in self._parameters])
        return [part.view_as(p) for part, p in zip(parts, self._parameters, strict=True)]

    def kinds(self) -> dict[str, list[torch.Tensor]]:
        """What is kept of every shard: parameters, both moments, and averages (after every update begun) if any."""
        kinds = {"model": self._parameters, "adam_m": self._adamw.m, "adam_v": self._adamw.v}
        if self._averages is not None:
            self._averages.wait()
            kinds["ema"] = self._averages.averages
        return kinds

    def restart_averages(self) -> None:
        """Average from the parameters as they are now, after they were written to from elsewhere than a checkpoint."""
        if self._averages is not None:
            self._averages.reset()
