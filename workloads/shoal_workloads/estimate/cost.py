"""What a run costs."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_workloads.estimate.step import Estimate

__all__ = ["Bill", "Rent", "bill"]

HOUR, DAY, TRILLION = 3600.0, 86400.0, 1e12


@dataclass(frozen=True)
class Rent:
    """Of all GPUs of a cluster, whether they train or not; `price`: dollars a GPU and hour."""

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


@dataclass(frozen=True)
class Bill(Rent):
    """Of a run of so many tokens without failures."""

    tokens: float

    @property
    def gpu_hours_per_trillion_tokens(self) -> float:
        return self.gpu_hours / self.tokens * TRILLION


def bill(found: Estimate, tokens: float, price: float) -> Bill:
    """price: dollars a GPU and hour."""
    return Bill(tokens / found.tokens_per_second, found.cluster.workers, price, tokens)
