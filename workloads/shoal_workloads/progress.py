"""Where training stands before a step, and what follows from it: rates, weights, and the step's metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoal_workloads.config import PretrainConfig
from shoal_workloads.parallel.engine import Factors
from shoal_workloads.parallel.traffic import SCOPES
from shoal_workloads.recipe.balance import max_violation

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """Step `step` (0-based) takes `batch` samples; `tokens` were consumed before it."""

    config: PretrainConfig
    step: int
    tokens: int
    batch: int

    @classmethod
    def at(cls, config: PretrainConfig, step: int, origin: tuple[int, int]) -> Progress:
        """origin: see `BatchConfig.samples`."""
        first, last = config.batch.samples(step, config.data.seq_len, origin)
        return cls(config, step, first * config.data.seq_len, last - first)

    @property
    def lr(self) -> float:
        return self.config.schedule.lr_at(self.step, self.tokens)

    @property
    def gamma(self) -> float:
        """Speed of the router biases."""
        return self.config.schedule.gamma_at(self.tokens)

    @property
    def mtp_weight(self) -> float:
        """Of each MTP module."""
        return self.config.schedule.mtp_weight_at(self.tokens) / max(1, self.config.model.mtp_depth)

    def factors(self) -> Factors:
        """Of the parts of the loss of a sample."""
        length = self.config.data.seq_len
        return Factors(1 / length, self.mtp_weight / length, self.config.balance_alpha)

    def metrics(self, loads: torch.Tensor, stats: Sequence[float], norm_sq: float) -> dict[str, float]:
        """What `PretrainShard.commit` returns, less the guard's part. loads: (L_r, E), of the step; stats: as
        `PretrainShard.stats` gives them, of all workers."""
        lm, mtp, balance, _, *sent = stats
        tokens, depth = self.batch * self.config.data.seq_len, max(1, self.config.model.mtp_depth)
        metrics = {
            "lm_loss": lm / tokens,
            "mtp_loss": mtp / tokens / depth,
            "balance_loss": balance / self.batch,
            "grad_norm": math.sqrt(norm_sq),
            "lr": self.lr,
            "tokens": float(tokens),
        }
        mtp_part = self.mtp_weight * depth * metrics["mtp_loss"]
        metrics["loss"] = metrics["lm_loss"] + mtp_part + self.config.balance_alpha * metrics["balance_loss"]
        if len(loads):
            by_layer = max_violation(loads).tolist()
            metrics["max_violation"] = sum(by_layer) / len(by_layer)
            metrics.update({f"max_violation.{i}": value for i, value in enumerate(by_layer)})
        if sent:
            metrics.update({f"exchange_{scope}": size for scope, size in zip(SCOPES, sent, strict=True)})
        return metrics
