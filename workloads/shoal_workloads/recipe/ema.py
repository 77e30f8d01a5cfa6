"""Exponential moving average of the parameters, in CPU memory, updated while the next step runs (report, 3.2.3)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

__all__ = ["Ema"]


class Ema:
    """average = decay * average + (1 - decay) * parameter, after every step.

    `update` returns at once; parameters must not change before `wait`, which whoever reads `averages` or steps the
    optimizer calls first."""

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self._parameters = list(parameters)
        self.averages = [p.detach().to("cpu", copy=True) for p in self._parameters]
        self._running: threading.Thread | None = None

    def reset(self) -> None:
        """Start from the parameters as they are."""
        self.wait()
        for average, parameter in zip(self.averages, self._parameters, strict=True):
            average.copy_(parameter)

    def update(self) -> None:
        """Begin to fold the parameters in."""
        self.wait()
        self._running = threading.Thread(target=self._fold, name="ema")
        self._running.start()

    def wait(self) -> None:
        """Until the averages are those of the last `update`."""
        if self._running is not None:
            self._running.join()
            self._running = None

    @torch.no_grad()
    def _fold(self) -> None:
        for average, parameter in zip(self.averages, self._parameters, strict=True):
            average.lerp_(parameter.to("cpu"), 1.0 - self.decay)
