"""What a run costs."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_workloads.estimate.step import Estimate

__all__ = ["Bill", "bill"]

HOUR, DAY, TRILLION = 3600.0, 86400.0, 1e12


@dataclass(frozen=True)
class Bill:
    """Of a run without failures, all GPUs of the cluster paid for; `price`: dollars a GPU and hour."""

    tokens: float
    seconds: float
    gpus: int
    price: float

    @property
    def days(self) -> float:
        return self.seconds / DAY

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.gpus / HOUR

    @property
    def dollars(self) -> float:
        return self.gpu_hours * self.price

    @property
    def gpu_hours_per_trillion_tokens(self) -> float:
        return self.gpu_hours / self.tokens * TRILLION


def bill(found: Estimate, tokens: float, price: float, trains: float = 1.0) -> Bill:
    """trains: of all time, the share in which the run gets on (1: nothing ever fails)."""
    return Bill(tokens, tokens / found.tokens_per_second / trains, found.cluster.workers, price)
