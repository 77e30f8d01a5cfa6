"""The quadratic, in processes that take the storage for one that takes ten bytes a second until they have saved."""

from __future__ import annotations

from shoal.saving import deadline
from shoal_workloads.synthetic import Synthetic

__all__ = ["SlowStorage"]


class SlowStorage(Synthetic):
    def warm_up(self, workers: int) -> None:
        deadline.SPEED = 10.0
