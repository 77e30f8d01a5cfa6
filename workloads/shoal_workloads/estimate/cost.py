"""What a run costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shoal_core.mesh import Mesh
from shoal_workloads.estimate.step import Cluster

__all__ = ["Bill", "Reckoned", "Rent", "bill"]

HOUR, DAY, TRILLION = 3600.0, 86400.0, 1e12


class Reckoned(Protocol):
    """What is known of a step of any run: of a preset's, a job's, or of a user's own model. See `Estimate`."""

    @property
    def cluster(self) -> Cluster: ...
    @property
    def mesh(self) -> Mesh: ...
    @property
    def cells(self) -> int: ...
    @property
    def micro_batches(self) -> int: ...
    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes of the worker that needs most."""

    @property
    def peak(self) -> int:
        """Their sum."""

    @property
    def step(self) -> Mapping[str, float]: ...
    @property
    def phases(self) -> Mapping[str, float]: ...
    @property
    def layout(self) -> Mapping[str, Any]:
        """For a program."""

    @property
    def fits(self) -> bool: ...
    @property
    def seconds(self) -> float: ...
    @property
    def tokens(self) -> float:
        """Of a step."""

    @property
    def tokens_per_second(self) -> float: ...
    @property
    def mfu(self) -> float: ...


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


def bill(found: Reckoned, tokens: float, price: float) -> Bill:
    """price: dollars a GPU and hour."""
    return Bill(tokens / found.tokens_per_second, found.cluster.workers, price, tokens)
