"""How many samples a step takes: constant, or ramped up over the first tokens as in the report (section 4.2)."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["BatchConfig", "RampConfig"]


class RampConfig(BaseModel):
    """From `start` samples to `global_batch` over the first `tokens`, in `stages` equal rises. The report's: 3072 to
    15360 over 469B; the number of rises is not published."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    start: int = Field(gt=0)
    tokens: float = Field(gt=0)
    stages: int = Field(default=4, gt=0, le=1_000)


class BatchConfig(BaseModel):
    """In samples. A step's batch is the same whatever the cluster looks like."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    global_batch: int = Field(gt=0)
    micro_batch: int = Field(default=1, gt=0, description="samples one worker takes at a time")
    ramp: RampConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for batch in [self.global_batch, *(size for size, _ in self._stages(1))]:
            if batch % self.micro_batch:
                raise ValueError(f"batch.micro_batch: {self.micro_batch} does not divide a step's batch of {batch}")
        if self.ramp is not None and self.ramp.start > self.global_batch:
            raise ValueError(f"batch.ramp.start: {self.ramp.start} exceeds global_batch {self.global_batch}")
        return self

    def samples(self, step: int, seq_len: int, origin: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """`[first, last)`: positions in the global order that step `step` (0-based) consumes.

        origin: (steps, samples) that were committed and consumed when these batches began: `step` is none before."""
        step, first, end = step - origin[0], origin[1], 0
        if step < 0:
            raise ValueError(f"the batch of a step before {origin[0]} is not known")
        for size, steps in self._stages(seq_len):
            end += size * steps
            left = max(0, -(-(end - first) // size))  # steps of this stage that are still to come
            if step < left:
                return first + step * size, first + (step + 1) * size
            first, step = first + left * size, step - left
        return first + step * self.global_batch, first + (step + 1) * self.global_batch

    def _stages(self, seq_len: int) -> list[tuple[int, int]]:
        """(batch, steps) of each stage of the ramp."""
        if self.ramp is None:
            return []
        out = []
        for i in range(self.ramp.stages):
            size = self.ramp.start + i * (self.global_batch - self.ramp.start) // self.ramp.stages
            out.append((size, -(-int(self.ramp.tokens / self.ramp.stages) // (size * seq_len))))
        return out
