"""Positions in the global order -> items of a map-style dataset: a seeded permutation, epoch after epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from shoal_workloads.torchmodel.randomness import key_of, seeded

__all__ = ["Dataset", "Items", "moved"]


class Dataset(Protocol):
    """What has a length and an item at every index below it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Items:
    """Batches of a dataset. `order`: the seed of the permutation, none: items stand in their own order (held out).
    `seed`: of what is random in the dataset, which is the same whenever a position is read."""

    def __init__(self, dataset: Dataset, order: int | None, seed: int, collate: Callable[[list[Any]], Any]) -> None:
        from shoal_data.reading.order import SampleOrder

        self._dataset, self._seed, self._collate = dataset, seed, collate
        self._order = None if order is None else SampleOrder([len(dataset)], None, order)

    def indices(self, positions: Sequence[int]) -> list[int]:
        """Which item stands at each position, of any epoch."""
        if self._order is None:
            return list(positions)
        return [int(index) for index in self._order(np.asarray(positions, dtype=np.int64))[1]]

    def batch(self, positions: Sequence[int]) -> Any:
        """What `collate` makes of the items at these positions."""
        items = []
        for position, index in zip(positions, self.indices(positions), strict=True):
            with seeded(key_of("item", self._seed, position)):
                items.append(self._dataset[index])
        return self._collate(items)


def moved(batch: Any, device: str) -> Any:
    """A batch with its tensors on a device: in lists, tuples and mappings too, and whatever has a method `to`."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch.to(device)
    if isinstance(batch, dict):
        return type(batch)({key: moved(value, device) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(moved(value, device) for value in batch)
    return batch
