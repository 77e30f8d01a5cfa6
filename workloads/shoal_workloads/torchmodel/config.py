"""What every `TorchWorkload` can be told in its job's `workload` section, and the learning rate that follows."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shoal_workloads.recipe.guard import GuardConfig

__all__ = ["TorchConfig"]


class TorchConfig(BaseModel):
    """Subclass it for settings of your own: `class Config(TorchWorkload.Config): width: int = 64`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    global_batch: int = Field(gt=0, description="samples of a step, over all workers")
    micro_batch: int = Field(default=1, gt=0, description="samples that one worker takes at a time")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate of Shoal's AdamW")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear warm-up from 0")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="what the learning rate does after the warm-up"
    )
    schedule_steps: int | None = Field(
        default=None, gt=0, description="step at which cosine and linear end; needed for them"
    )
    final_lr: float = Field(default=0.0, ge=0, le=1, description="where cosine and linear end, as a share of the peak")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="of Shoal's AdamW")
    eps: float = Field(default=1e-8, gt=0, description="of Shoal's AdamW")
    weight_decay: float = Field(
        default=0.01, ge=0, description="of Shoal's AdamW; parameters of one dimension or none do not decay"
    )
    clip: float | None = Field(
        default=1.0, gt=0, description="largest norm of the gradient over the whole model; none: it is not clipped"
    )
    ema_decay: float | None = Field(default=None, gt=0, lt=1, description="keep an average of the parameters")
    seed: int = Field(default=0, ge=0, description="of the order of samples, and of what is random in training")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: torch.autocast; parameters, gradients and moments are float32"
    )
    device: Literal["cpu", "cuda"] = "cpu"
    reduce_once: bool = Field(
        default=False,
        description="workers of a cell add their gradients up once for all micro-batches that they are given together: "
        "less traffic, and room for the gradients of the whole model",
    )
    heldout_samples: int = Field(
        default=64, gt=0, description="samples of the held-out set that are evaluated, the first"
    )
    guard: GuardConfig = GuardConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.global_batch % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide global_batch {self.global_batch}")
        if any(not 0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {self.betas} are not both in [0, 1)")
        if self.schedule != "constant":
            if self.schedule_steps is None:
                raise ValueError(f"schedule_steps: {self.schedule} needs the step at which it ends (the job's steps)")
            if self.schedule_steps <= self.warmup_steps:
                raise ValueError(f"schedule_steps: {self.schedule_steps} are over before warmup_steps are")
        return self

    def rate_at(self, step: int) -> float:
        """The learning rate of step `step` (0-based) as a share of its peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant" or self.schedule_steps is None:
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / (self.schedule_steps - self.warmup_steps))
        left = 1.0 - done if self.schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2
        return self.final_lr + (1.0 - self.final_lr) * left
