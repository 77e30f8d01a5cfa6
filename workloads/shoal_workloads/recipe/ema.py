"""Exponential moving average of the parameters, in CPU memory, updated while the next step runs (report, 3.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from shoal_core.lane import beside, lane_of

__all__ = ["Ema"]

PIECE = 1 << 24
"""Elements that come from a GPU at once."""


class Ema:
    """average = decay * average + (1 - decay) * parameter, after every step.

    `update` returns at once; parameters must not change before `wait`, which whoever reads `averages` or steps the
    optimizer calls first. From a GPU they come piece by piece through pinned memory, on a stream of their own, so that
    they do not queue among what the next step computes."""

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self._parameters = list(parameters)
        self.averages = [p.detach().to("cpu", copy=True) for p in self._parameters]
        self._running: Future[None] | None = None
        away = any(p.is_cuda for p in self._parameters)
        self._lane = lane_of("cuda") if away else None
        self._pinned = torch.empty(PIECE if away else 0, pin_memory=away)

    def reset(self) -> None:
        """Start from the parameters as they are."""
        self.wait()
        for average, parameter in zip(self.averages, self._parameters, strict=True):
            average.copy_(parameter)

    def update(self) -> None:
        """Begin to fold the parameters in."""
        self.wait()
        if self._lane is not None:
            self._lane.follow()
        self._running = beside(self._fold, "ema")

    def wait(self) -> None:
        """Until the averages are those of the last `update`. Any thread. Raises: what it met."""
        if self._running is not None:
            self._running.result()

    @torch.no_grad()
    def _fold(self) -> None:
        for average, parameter in zip(self.averages, self._parameters, strict=True):
            if self._lane is None:
                average.lerp_(parameter, 1.0 - self.decay)
                continue
            pieces = parameter.detach().view(-1).split(PIECE), average.view(-1).split(PIECE)
            for piece, its_average in zip(*pieces, strict=True):
                near = self._pinned[: piece.numel()]
                self._lane.copy([near], [piece]).wait()
                its_average.lerp_(near, 1.0 - self.decay)
