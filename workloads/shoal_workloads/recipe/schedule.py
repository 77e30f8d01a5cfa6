"""DeepSeek-V3's schedules as pure functions of tokens, scaled from its 14.8T to any budget (report, section 4.2)."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ScheduleConfig"]

T = 1e12
BUDGET = 14.8 * T


class ScheduleConfig(BaseModel):
    """What changes in the course of training. Milestones are the report's, as shares of `budget`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    budget: float = Field(default=BUDGET, gt=0, description="tokens the run is planned for")
    lr: float = Field(default=2.2e-4, gt=0, description="peak learning rate")
    warmup_steps: int = Field(default=2000, ge=0, description="steps of linear warm-up from 0")
    gamma: float = Field(default=1e-3, ge=0, description="speed of the router bias")
    mtp_weight: float = Field(default=0.3, ge=0, description="lambda, a third of it after the long plateau")

    def lr_at(self, step: int, tokens: float) -> float:
        """The learning rate of step `step` (0-based), before which `tokens` were consumed.

        Warm-up to 2.2e-4, constant to 10T, cosine to a tenth at 14.3T, a tenth to 14.633T, then 7.3/220."""
        t = tokens * BUDGET / self.budget
        if t < 10 * T:
            rate = self.lr
        elif t < 14.3 * T:
            rate = self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * (t - 10 * T) / (4.3 * T))))
        elif t < 14.633 * T:
            rate = self.lr * 0.1
        else:
            rate = self.lr * (7.3 / 220)
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return rate * warm

    def gamma_at(self, tokens: float) -> float:
        """Speed of the router bias: `gamma` to 14.3T, then 0."""
        return self.gamma if tokens * BUDGET / self.budget < 14.3 * T else 0.0

    def mtp_weight_at(self, tokens: float) -> float:
        """lambda: 0.3 to 10T, then 0.1."""
        return self.mtp_weight if tokens * BUDGET / self.budget < 10 * T else self.mtp_weight / 3

    def remarks(self, steps: int, tokens: int) -> list[str]:
        """What somebody should know of this schedule before a run of `steps` steps and `tokens` tokens in all."""
        found = []
        if "budget" not in self.model_fields_set and tokens < BUDGET / 100:
            found.append(
                f"schedule.budget is not set: the learning rate follows the report's plan for 14.8T tokens, of which "
                f"this run takes {tokens:,}; set schedule.budget={tokens} to plan for this run"
            )
        elif tokens > self.budget:
            rate = self.lr_at(steps, tokens)
            found.append(
                f"the schedule is planned for {self.budget:,.0f} tokens (schedule.budget), the run goes on to "
                f"{tokens:,}: from there the learning rate stays at its last, {rate:.3g}"
            )
        if steps < self.warmup_steps:
            found.append(
                f"schedule.warmup_steps is {self.warmup_steps:,}, the run has {steps:,} steps: it ends in its warm-up, "
                f"at a learning rate of {self.lr_at(steps - 1, tokens):.3g}"
            )
        return found
