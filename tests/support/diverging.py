"""A workload whose training diverges: from its step `DIVERGES` on nothing is a number, and nothing is applied."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from shoal_workloads.synthetic import Synthetic, SyntheticShard

DIVERGES = 20


class DivergingShard(SyntheticShard):
    def begin(self, step: int) -> None:
        super().begin(step)
        self.step = step

    def commit(self, total: torch.Tensor, stats: Sequence[float], norm_sq: float) -> dict[str, float]:
        if self.step < DIVERGES:
            return super().commit(total, stats, norm_sq)
        figures = {"lr": self.config.lr, "tokens": stats[1], "mtp_loss": 0.0}
        return {"loss": math.nan, "lm_loss": math.nan, "grad_norm": math.inf, **figures}


class Diverging(Synthetic):
    """See the module."""

    def build(self, seed: int) -> DivergingShard:
        return DivergingShard(self.config, seed)
