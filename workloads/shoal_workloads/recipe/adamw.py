"""AdamW on plain local shards, with the clip and the learning rate of the step passed in.

An optimizer on DTensors pays their dispatch for every operation, and its state hides in a dictionary; here the moments
are tensors beside the parameters, to be copied to a twin or written to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AdamW", "AdamWConfig"]

AT_ONCE = 1 << 26
"""Elements that are updated at once, unless one parameter has more."""


VECTOR = 64
"""Elements: a multiple of those that a CPU updates at once."""


class AdamWConfig(BaseModel):
    """The report's values (section 4.2); `eps` is unpublished. Vectors (norm weights) are not decayed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    moments: Literal["fp32", "bf16"] = Field(default="fp32", description="the report keeps them in bf16")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient over the whole model")


class Cut:
    """A parameter, its gradient and its moments in parts of whole vectors, the last of which is padded. What is left
    over after whole vectors a CPU's kernel rounds otherwise, and what that is hangs on where shards are cut."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        flat = [tensor.view(-1) for tensor in tensors]
        left = len(flat[0]) % VECTOR if flat[0].device.type == "cpu" else 0
        body = len(flat[0]) - left
        self._tails = [one[body:] for one in flat] if left else []
        self._padded = [F.pad(tail, (0, VECTOR - left)) for tail in self._tails]
        whole = [one[:body] for one in flat] if body else []
        self.parts = [part for part in (whole, self._padded) if part]

    def put_back(self) -> None:
        """What was made of the padded part is the tensors'."""
        for tail, padded in zip(self._tails, self._padded, strict=True):
            tail.copy_(padded[: len(tail)])


class AdamW:
    """`parameters`: local shards, float32, updated in place."""

    def __init__(self, parameters: Sequence[torch.Tensor], config: AdamWConfig) -> None:
        self.config = config
        self.parameters = list(parameters)
        dtype = torch.float32 if config.moments == "fp32" else torch.bfloat16
        self.m = [torch.zeros_like(p, dtype=dtype) for p in self.parameters]
        self.v = [torch.zeros_like(p, dtype=dtype) for p in self.parameters]

    def step(self, grads: Sequence[torch.Tensor], lr: float, count: int) -> None:
        """Apply one update. grads: averaged and clipped, like the parameters; count: 1 for the first step."""
        c = self.config
        for decay, index in self._runs():
            wide = [(self.m[i].float(), self.v[i].float()) for i in index]  # no copy where they are float32
            cut = [Cut(self.parameters[i], grads[i], *both) for i, both in zip(index, wide, strict=True)]
            parts = [part for one in cut for part in one.parts]
            torch._fused_adamw_(
                [p for p, _, _, _ in parts],
                [grad for _, grad, _, _ in parts],
                [m for _, _, m, _ in parts],
                [v for _, _, _, v in parts],
                [],
                # On a GPU the kernel reads it there; `full` makes it there, where `tensor` would copy and wait.
                [torch.full((), float(count), device=part[0].device) for part in parts],
                lr=lr,
                beta1=c.beta1,
                beta2=c.beta2,
                weight_decay=c.weight_decay if decay else 0.0,
                eps=c.eps,
                amsgrad=False,
                maximize=False,
            )
            for one in cut:
                one.put_back()
            if c.moments == "bf16":
                for i, (m, v) in zip(index, wide, strict=True):
                    self.m[i].copy_(m)
                    self.v[i].copy_(v)

    def _runs(self) -> Iterator[tuple[bool, list[int]]]:
        """Parameters that are updated at once, and whether they decay: moments kept in bfloat16 are float32 meanwhile,
        and not all of them have room to be."""
        for decay in (True, False):
            run: list[int] = []
            for i, p in enumerate(self.parameters):
                if (p.dim() > 1) != decay or not p.numel():
                    continue
                if run and sum(self.parameters[j].numel() for j in run) + p.numel() > AT_ONCE:
                    yield decay, run
                    run = []
                run.append(i)
            if run:
                yield decay, run
