"""Loss spikes and NaNs: a fault is a jump of loss or gradient norm far over its recent average, or no number at all."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Guard", "GuardConfig"]

Judgement = Literal["fine", "spike", "not finite"]


class GuardConfig(BaseModel):
    """What counts as a fault, and what is done about a step that has one.

    `report`: the step is applied and its metrics say `fault` (1: spike, 2: not finite); `skip`: it is not applied,
    neither to parameters nor to biases; `roll_back`: not applied either, and its metrics ask the platform with
    `roll_back` to return to the last snapshot. A step that is not finite is never applied."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    action: Literal["report", "skip", "roll_back"] = "report"
    factor: float = Field(default=5.0, gt=1, description="a jump to this many times the average is a spike")
    memory: float = Field(default=0.98, gt=0, lt=1, description="decay of the averages of loss and gradient norm")
    settle: int = Field(default=20, ge=1, description="steps before a spike is called one")


class Guard:
    """`state`: (3,) float64, averages of loss and norm and the number of fine steps. It is part of what a healed twin
    receives, since a judgement must be the same everywhere."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.state = torch.zeros(3, dtype=torch.float64)

    def judge(self, loss: float, norm: float) -> Judgement:
        """Whether this step is fine; if so, it enters the averages."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "not finite"
        mean_loss, mean_norm, count = self.state.tolist()
        factor = self.config.factor
        if count >= self.config.settle and (loss > factor * mean_loss or norm > factor * mean_norm):
            return "spike"
        keep = min(self.config.memory, count / (count + 1))
        # In single precision: the last bits of a norm depend on who holds which expert, and exact runs end alike.
        new = torch.tensor([loss, norm], dtype=torch.float32).double()
        self.state[:2].mul_(keep).add_(new, alpha=1 - keep)
        self.state[2] += 1
        return "fine"

    def applies(self, found: Judgement) -> bool:
        """Whether a step that was found so is applied."""
        return found == "fine" or (found == "spike" and self.config.action == "report")
